"""What the models of a RECAP run are going to take: memory by part, and disk."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from pi0.gemma import ActionExpert
from pi0.model import Pi0Model
from pi0.needs import MemoryNeeds, disk_needs, process_memory, sized_model, training_memory
from pi0.pretrained import describe, resolve
from pi0.registry import get_config
from pi0.ript.recap.config import RecapConfig
from pi0.ript.recap.rounds import Run
from pi0.ript.training.fitted_features import without_absent_cameras
from pi0.ript.training.settings import PolicyTraining

_FLOAT32 = 4
_PASS = 2**30  # of `ValueFunction.frames_at_once`


@dataclass(frozen=True)
class ModelBudget:
    """What a process holds at most, and what the run's models take on the disk; in bytes."""

    policy: MemoryNeeds
    """In the training of the policy that takes the most."""
    value: int
    """In a value function's training: the policy that it reads, it, its gradients, averages and a pass."""
    copies: int
    """What a checkpoint is written from in the background."""
    prefixes: int
    """Keys and values that are kept in memory (`policy.prefix_cache_gib`)."""
    programs: int
    """What this process holds already: Python and its libraries."""
    untrained: int
    """Weights on the disk that the run does not train, once."""
    policies: int
    """What each policy of the run has for itself, together."""
    values: int
    """All value functions."""
    published: int
    """The policy that is complete."""
    snapshot: int
    """Meanwhile: the snapshots of a training, two while one is written."""

    @property
    def memory(self) -> int:
        """Return the most that a process holds at once, but for images and simulators."""
        return self.programs + max(self.policy.peak, self.value) + self.copies + self.prefixes

    @property
    def kept(self) -> int:
        """Return what is on the disk at the end."""
        return self.untrained + self.policies + self.values + self.published

    def __str__(self) -> str:
        """Return it in words."""
        needs = self.policy
        together = f", to exchange {_gb(needs.exchanged)}" if needs.exchanged else ""
        copies = f"; copies for checkpoints {_gb(self.copies)}" if self.copies else ""
        copies += f"; prefixes {_gb(self.prefixes)}" if self.prefixes else ""
        together += f", or {_gb(needs.acting)} gathered to act" if needs.acting else ""
        return (
            f"budget: memory of a process up to {_gb(self.memory)}: programs {_gb(self.programs)}; training "
            f"the policy: weights {_gb(needs.weights)}, gradients {_gb(needs.gradients)}, the optimizer "
            f"{_gb(needs.moments)}, activations {_gb(needs.activations)}{together}; "
            f"a value function {_gb(self.value)}{copies}\n"
            f"budget: models on disk {_gb(self.kept)}: untrained weights {_gb(self.untrained)} once, "
            f"policies {_gb(self.policies)}, value functions {_gb(self.values)}, the published policy "
            f"{_gb(self.published)}; meanwhile snapshots of a training, {_gb(self.snapshot)}"
        )


def _gb(size: int) -> str:
    return f"{size / 1e9:.3g} GB"


def model_budget(run: Run) -> ModelBudget:
    """Return what the models of a run take whose policy is a checkpoint; its weights are not read."""
    config, (model, cameras), settings = run.config, _sized(run), run.config.policy
    policies = 1 + config.rounds + 2 * config.baselines + config.filtered_rounds
    needs = policy_memory(config, model, cameras, run.world.size, config.distributed.strategy)
    value, disk = _value_size(run, model), disk_needs(model)
    averages = 3 * _FLOAT32 * value
    read = sum(p.numel() * p.element_size() for p in model.parameters())  # by every process, whole
    parts = run.world.size if config.distributed.strategy == "fsdp" else 1
    return ModelBudget(
        policy=needs,
        value=read + math.ceil(4 * _FLOAT32 * value / parts) + _PASS,
        copies=3 * needs.moments // 2 if config.distributed.background_checkpoints else 0,
        prefixes=0 if settings.prefix_cache == "disk" else int(settings.prefix_cache_gib * 2**30),
        programs=psutil.Process().memory_info().rss,
        untrained=disk.untrained,
        policies=policies * disk.trained,
        values=(1 + config.rounds) * _FLOAT32 * value,
        published=disk.complete,
        snapshot=2 * max(disk.snapshot, averages),
    )


def policy_memory(
    config: RecapConfig, model: Pi0Model, num_cameras: int, num_processes: int, strategy: str
) -> MemoryNeeds:
    """Return what a process takes in the training of the policy that takes the most.

    Args:
        config: Says how it is trained.
        model: The policy's model, without memory, frozen as in training.
        num_cameras: Images of an observation.
        num_processes: Those that train together.
        strategy: See `process_memory`.
    """
    trainings = [(config.finetuning.training, 2 if config.finetuning.objective == "ript" else 1)]
    trainings += [] if config.skip_sft else [(config.sft, 1)]

    def memory(training: PolicyTraining, passes: int) -> MemoryNeeds:
        samples = math.ceil(training.batch_size / num_processes)
        size = min(training.micro_batch_size, samples)
        needs = training_memory(model, size, num_cameras, num_draws=training.num_draws)
        needs = replace(needs, activations=passes * needs.activations)
        return process_memory(needs, model, strategy, num_processes, accumulates=samples > size)

    return max((memory(*each) for each in trainings), key=lambda needs: needs.peak)


def _sized(run: Run) -> tuple[Pi0Model, int]:
    """Return the policy without memory, frozen as in training, and how many cameras it sees."""
    settings, names = run.config.policy, run.config.demonstrations.data_features_name_mapping
    directory = resolve(Path(run.config.policy_path).expanduser())
    named = get_config(settings.config) if settings.config else None
    said = describe(directory, named, None, None, settings.extra_delta_transform, settings.embodiment)
    model = sized_model(replace(said.config, **settings.changes(), indicator=settings.indicator), directory)
    model.freeze(settings.freeze, settings.frozen_dtype)
    return model, len(without_absent_cameras(said.features, [names]).present_cameras)


def _value_size(run: Run, model: Pi0Model) -> int:
    """Return the number of parameters of the run's value function."""
    settings, config = run.config.value, model.config
    is_expert = settings.form == "expert"
    width = settings.width if is_expert else config.expert.width
    expert = replace(config.vlm, width=width, mlp_dim=4 * width, lora_rank=0)
    with torch.device("meta"):
        size = sum(p.numel() for p in ActionExpert(expert, adaptive=False).parameters())
    size += width * (config.max_state_dim + 2) + (width + 1) * run.config.reward.number_of_bins
    if not is_expert:
        size += sum(p.numel() for stack in (model.vision, model.vlm) for p in stack.parameters())
    return size

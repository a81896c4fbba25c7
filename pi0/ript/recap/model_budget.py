"""What the models of a RECAP run are going to take: memory by part, and disk."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from pi0.gemma import ActionExpert
from pi0.model import Pi0Model
from pi0.needs import MemoryNeeds, disk_needs, sized_model, training_memory
from pi0.pretrained import describe, resolve
from pi0.registry import get_config
from pi0.ript.recap.rounds import Run
from pi0.ript.training.fitted_features import without_absent_cameras
from pi0.ript.training.settings import PolicyTraining

_FLOAT32 = 4


@dataclass(frozen=True)
class ModelBudget:
    """What a process holds at most, and what the run's models take on the disk; in bytes."""

    policy: MemoryNeeds
    """In the training of the policy that takes the most."""
    value: int
    """In a value function's training: the policy that it reads, it, its gradients and averages."""
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
        return self.programs + max(self.policy.peak, self.value)

    @property
    def kept(self) -> int:
        """Return what is on the disk at the end."""
        return self.untrained + self.policies + self.values + self.published

    def __str__(self) -> str:
        """Return it in words."""
        needs = self.policy
        return (
            f"budget: memory of a process up to {_gb(self.memory)}: programs {_gb(self.programs)}; training "
            f"the policy: weights {_gb(needs.weights)}, gradients {_gb(needs.gradients)}, the optimizer "
            f"{_gb(needs.moments)}, activations {_gb(needs.activations)}; "
            f"a value function {_gb(self.value)}\n"
            f"budget: models on disk {_gb(self.kept)}: untrained weights {_gb(self.untrained)} once, "
            f"policies {_gb(self.policies)}, value functions {_gb(self.values)}, the published policy "
            f"{_gb(self.published)}; meanwhile snapshots of a training, {_gb(self.snapshot)}"
        )


def _gb(size: int) -> str:
    return f"{size / 1e9:.3g} GB"


def model_budget(run: Run) -> ModelBudget:
    """Return what the models of a run take whose policy is a checkpoint; its weights are not read."""
    config, (model, cameras) = run.config, _sized(run)
    policies = 1 + config.rounds + 2 * config.baselines + config.filtered_rounds
    trainings: list[tuple[PolicyTraining, int]] = [
        (config.finetuning.training, 2 if config.finetuning.objective == "ript" else 1)
    ]
    trainings += [] if config.skip_sft else [(config.sft, 1)]
    needs = max(
        (_memory(model, cameras, each, run.world.size, passes) for each, passes in trainings),
        key=lambda m: m.peak,
    )
    value, disk = _value_size(run, model), disk_needs(model)
    averages = 3 * _FLOAT32 * value
    return ModelBudget(
        policy=needs,
        value=needs.weights + 4 * _FLOAT32 * value,
        programs=psutil.Process().memory_info().rss,
        untrained=disk.untrained,
        policies=policies * disk.trained,
        values=(1 + config.rounds) * _FLOAT32 * value,
        published=disk.complete,
        snapshot=2 * max(disk.snapshot, averages),
    )


def _sized(run: Run) -> tuple[Pi0Model, int]:
    """Return the policy without memory, frozen as in training, and how many cameras it sees."""
    settings, names = run.config.policy, run.config.demonstrations.data_features_name_mapping
    directory = resolve(Path(run.config.policy_path).expanduser())
    named = get_config(settings.config) if settings.config else None
    said = describe(directory, named, None, None, settings.extra_delta_transform, settings.embodiment)
    model = sized_model(replace(said.config, **settings.changes(), indicator=settings.indicator), directory)
    model.freeze(settings.freeze, settings.frozen_dtype)
    return model, len(without_absent_cameras(said.features, [names]).present_cameras)


def _memory(
    model: Pi0Model, cameras: int, training: PolicyTraining, processes: int, passes: int
) -> MemoryNeeds:
    size = min(training.micro_batch_size, math.ceil(training.batch_size / processes))
    needs = training_memory(model, size, cameras, num_draws=training.num_draws)
    return replace(needs, activations=passes * needs.activations)


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

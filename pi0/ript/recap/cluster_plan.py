"""What a RECAP run of the real pi0 takes on N GPUs, by formulas: memory by strategy, hours, a price.

Counted on tensors without memory: parameters, what a forward pass keeps, floating-point operations. Assumed,
in the constants below: the share of a GPU's peak that is reached, and the speed of LIBERO. Nothing of it was
measured on GPUs.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from pi0.config import Pi0Config
from pi0.errors import UnusableError
from pi0.model import Pi0Model
from pi0.needs import acting_sizes, example_observation, without_memory
from pi0.prefix_cache import prefix_bytes, trained_in_prefix
from pi0.registry import get_config
from pi0.ript.recap.budget import PlannedWork, planned_work
from pi0.ript.recap.config import RecapConfig
from pi0.ript.recap.gpus import Gpu, gpu_named
from pi0.ript.recap.model_budget import policy_memory
from pi0.ript.training.settings import PolicyTraining

TRAINING_SHARE = 0.35
"""Of the peak, in training. Published runs of models like this one reach 0.18 to 0.47."""
ACTING_SHARE = 0.25
"""Of the peak, when a batch of observations is acted upon."""
NUM_CAMERAS = 2
"""Images of an observation, as in LIBERO."""
PER_MACHINE = 8
"""GPUs of a machine."""
NETWORK = 50e9
"""Bytes per second and GPU between machines (400 Gbit/s)."""
LIBERO_STEP_S = {"stock": (0.0356, 0.1854), "fast": (0.0208, 0.0344)}
"""CPU seconds of a step in LIBERO with images at chunks, and with images at every step: docs/results.md."""
USABLE = 0.9
"""Of a GPU's memory: the rest is CUDA's and lost between blocks."""


@dataclass(frozen=True)
class ModelCosts:
    """Operations and bytes of the model, as a run trains it."""

    trained: int
    """Bytes of the parameters that are trained, in float32."""
    acting: int
    """Bytes of the weights, as they are held for acting."""
    expert: int
    """Bytes of the expert, which acting reads in every step of the flow."""
    step_flops: int
    """Forward and backward, per sample."""
    forward_flops: int
    chunk_flops: int
    """Of a chunk of actions, without guidance."""


def planned_model(config: RecapConfig, freeze: str | None = None) -> Pi0Model:
    """Return the model that a configuration trains, without memory; `freeze` in place of its own choice."""
    base = get_config(config.policy.config) if config.policy.config else Pi0Config()
    sizes = replace(base, **config.policy.changes())
    model = sizes.create(seed=None, device="meta")
    model.freeze(freeze or config.policy.freeze or sizes.freeze_filter(), config.policy.frozen_dtype)
    return model


def model_costs(model: Pi0Model, num_cameras: int) -> ModelCosts:
    """Return what a frozen model of the real size costs; it is counted without memory, in seconds."""
    config = model.config

    def count_step(twin: Pi0Model) -> tuple[int, int]:
        observation = example_observation(config, 1, num_cameras, config.tokenizer_max_length)
        with FlopCounterMode(display=False) as counter:
            loss = twin.loss(observation, torch.zeros(1, config.chunk_size, config.max_action_dim)).mean()
            forward = counter.get_total_flops()
            loss.backward()
            return forward, counter.get_total_flops()

    def count_chunk(twin: Pi0Model) -> int:
        observation = example_observation(config, 1, num_cameras, config.tokenizer_max_length)
        noise = torch.zeros(1, config.chunk_size, config.max_action_dim)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            twin.sample(observation, noise=noise)
            return counter.get_total_flops()

    forward, step = without_memory(model, count_step)
    sizes = acting_sizes(model)
    return ModelCosts(
        trained=sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad),
        acting=sum(sizes.values()),
        expert=sum(size for name, size in sizes.items() if name.startswith("expert.")),
        step_flops=step,
        forward_flops=forward,
        chunk_flops=without_memory(model, count_chunk),
    )


def exchange_seconds(gpu: Gpu, num_gpus: int, size: int) -> float:
    """Return how long a ring takes to add up `size` bytes of all GPUs."""
    speed = gpu.link if num_gpus <= PER_MACHINE else min(gpu.link, NETWORK)
    return 2 * (num_gpus - 1) / num_gpus * size / speed


def update_seconds(costs: ModelCosts, gpu: Gpu, num_gpus: int, batch_size: int) -> float:
    """Return how long an optimizer step takes; gradients are exchanged while it computes."""
    samples = math.ceil(batch_size / num_gpus)
    computing = samples * costs.step_flops / (TRAINING_SHARE * gpu.flops)
    return max(computing, exchange_seconds(gpu, num_gpus, costs.trained))


def chunk_seconds(costs: ModelCosts, gpu: Gpu, slots: int, passes: int, num_steps: int = 10) -> float:
    """Return how long a batch of chunks takes: to compute, or to read the weights.

    `passes` are 2 with guidance.
    """
    computing = passes * slots * costs.chunk_flops / (ACTING_SHARE * gpu.flops)
    return max(computing, (costs.acting + num_steps * costs.expert) / gpu.bandwidth)


@dataclass(frozen=True)
class Hours:
    """Of the parts of a run."""

    policy: float
    value: float
    recording: float
    judging: float

    @property
    def total(self) -> float:
        """Return their sum: the parts follow one another."""
        return self.policy + self.value + self.recording + self.judging


def run_hours(config: RecapConfig, work: PlannedWork, costs: ModelCosts, gpu: Gpu, num_gpus: int) -> Hours:
    """Return how long the parts of a run take, every episode until its deadline."""
    task, slots = config.task, config.task.num_parallel_envs or 1
    at_chunks, at_steps = LIBERO_STEP_S[task.render_quality or "stock"]
    value = replace(costs, step_flops=costs.forward_flops, trained=0)

    def training(steps: int, settings: PolicyTraining) -> float:
        return steps * update_seconds(costs, gpu, num_gpus, settings.batch_size)

    def episodes(count: int, step_seconds: float, guidance: float) -> float:
        passes = 1 if guidance in (0.0, 1.0) else 2
        chunk = config.policy.n_action_steps or Pi0Config.n_action_steps
        rounds = math.ceil(count / num_gpus) * math.ceil(work.steps / chunk) / slots
        simulating = slots / max(1, min(task.num_workers, slots)) * chunk * step_seconds
        return rounds * (simulating + chunk_seconds(costs, gpu, slots, passes))

    finetuning = work.policy_updates - work.sft_updates
    pretraining = config.value.pretraining
    return Hours(
        policy=(training(work.sft_updates, config.sft) + training(finetuning, config.finetuning.training))
        / 3600,
        value=work.value_updates * update_seconds(value, gpu, num_gpus, pretraining.batch_size) / 3600,
        recording=episodes(work.recorded, at_steps, config.rollouts.guidance) / 3600,
        judging=episodes(work.judged, at_chunks, config.eval.cfg_guidance_scale) / 3600,
    )


def plan(config: RecapConfig, num_gpus: int, name: str, price: float | None = None) -> Iterator[str]:
    """Yield the lines of a plan for a configuration on N GPUs of a kind.

    Args:
        config: Of RECAP, for LIBERO and a checkpoint of pi0's size.
        num_gpus: All GPUs, of all machines.
        name: One of `GPUS`.
        price: Of a GPU for an hour, in whatever currency.

    Raises:
        ValueError: The GPU is not known, or the configuration is of a toy.
    """
    gpu = gpu_named(name)
    if config.policy_path == "toy":
        raise UnusableError("--plan: expected a configuration with a checkpoint, found policy_path: toy")
    model = planned_model(config)
    costs = model_costs(model, NUM_CAMERAS)
    yield (
        f"computed, not measured: {num_gpus} x {name} ({gpu.memory / 1e9:.0f} GB, {gpu.flops / 1e12:.0f} "
        f"TFLOP/s in bfloat16, {gpu.bandwidth / 1e12:.2f} TB/s), {TRAINING_SHARE:.0%} of the peak in "
        f"training, {ACTING_SHARE:.0%} in acting"
    )
    yield (
        f"a sample: {costs.step_flops / 1e12:.2f} TFLOP forward and backward; a chunk of actions: "
        f"{costs.chunk_flops / 1e12:.2f}"
    )
    freeze = config.policy.freeze or model.config.freeze_filter()
    training = config.finetuning.training
    micro_batch = min(training.micro_batch_size, math.ceil(training.batch_size / num_gpus))
    for strategy in ("ddp", "fsdp"):
        size = policy_memory(config, model, NUM_CAMERAS, num_gpus, strategy).peak
        fits = "fits" if size <= USABLE * gpu.memory else f"is more than {USABLE:.0%} of a GPU"
        what = f"memory of a GPU, freeze={freeze}, micro-batch {micro_batch}, {strategy}"
        yield f"{what}: {size / 1e9:.1f} GB, {fits}"
    if trained_in_prefix(model) is None:
        sample = prefix_bytes(model.config, NUM_CAMERAS)
        yield (
            f"prefixes: vision and language are frozen, so kept ones are not computed again: "
            f"{sample / 1e6:.3g} MB a sample, {sample / 1e6:.3g} GB for 1,000 (policy.prefix_cache_gib)"
        )
    hours = run_hours(config, planned_work(config), costs, gpu, num_gpus)
    update = update_seconds(costs, gpu, num_gpus, training.batch_size)
    yield (
        f"an update of {training.batch_size} samples: {update:.2f} s; hours: policy "
        f"{hours.policy:.1f}, value function {hours.value:.1f}, recording {hours.recording:.1f}, judging "
        f"{hours.judging:.1f}, together {hours.total:.1f} at most"
    )
    if price is not None:
        yield f"price: {hours.total * num_gpus * price:.0f} ({price:g} for a GPU and hour)"

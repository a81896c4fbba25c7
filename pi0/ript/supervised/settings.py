"""Every setting of supervised training, with its type and default; names are OpenTau's where it has them.

The comment behind a field is what `--help` says of it.
"""

from dataclasses import dataclass, field

from pi0.ript.config.schema import ROUNDING, SAME, Distributed, Logging
from pi0.ript.data import MixtureSettings
from pi0.ript.labels.returns import RewardConfig
from pi0.ript.training.settings import Optimizer, Scheduler

BATCH_SIZE = 32
"""Where the settings ask for none."""


@dataclass
class NormalizationMapping:
    """What the configuration expects of the model; one that the checkpoint contradicts is an error."""

    VISUAL: str = "IDENTITY"  # images are always scaled to [-1, 1]
    STATE: str | None = None  # MEAN_STD, MIN_MAX, QUANTILES or IDENTITY; null: as the checkpoint says
    ACTION: str | None = None  # the same
    VALUE: str | None = None  # without effect: reward_config scales returns to [-1, 0]


@dataclass
class PolicySettings:
    """The model that is trained: a pi0 policy, or a value function."""

    type: str = "pi0"  # pi0 or value
    pretrained_path: str | None = None  # checkpoint; null or toy: a small new model, sized by the data
    policy_path: str | None = None  # of a value function: the policy whose images and prompts it reads
    form: str = "expert"  # of a new value function with policy_path: expert (reads its prefix) or separate
    width: int = 64  # of a new expert
    config: str | None = None  # a registered configuration (pi0.registry) in place of the checkpoint's
    freeze: str | None = "none"  # vision, expert_only, lora, or a regular expression; null: the config's own
    dtype: str | None = None  # of computation: float32 or bfloat16; null: as the checkpoint says
    gradient_checkpointing: bool = field(default=False, metadata=ROUNDING)  # less memory, a third more time
    # checkpoint, or data: normalisation and widths of state and action are those of the data sets
    statistics: str = "checkpoint"
    norm_stats_path: str | None = None  # an openpi norm_stats.json that replaces the checkpoint's statistics
    extra_delta_transform: bool | None = None  # openpi's LIBERO checkpoints: true for pi0, false for pi05
    normalization_mapping: NormalizationMapping = field(default_factory=NormalizationMapping)
    n_obs_steps: int = 1  # pi0 sees one observation
    chunk_size: int | None = None  # actions predicted at once; null: as the checkpoint says, a toy 8
    n_action_steps: int | None = None  # of them executed; null: as the checkpoint says, a toy all
    max_state_dim: int | None = None  # zero-padded width; null: as the checkpoint says, a toy the data's
    max_action_dim: int | None = None  # the same
    tokenizer_max_length: int | None = None  # prompt tokens; null: as the checkpoint says
    advantage: str = "on"  # on: always positive; use: by meta/advantages.json; ignore: no indicator
    advantage_threshold: float | None = None  # positive above it; null: the one that pi0-advantage chose
    missing_advantage: str = "error"  # a frame without one: error, positive, negative, or drop (not drawn)
    use_awr: bool = False  # weigh each sample by min(exp(A / awr_beta), awr_max_weight) as well
    awr_beta: float = 1.0
    awr_max_weight: float = 10.0
    indicator: str | None = None  # embedding (state token) or text (prompt); null: as the checkpoint says
    indicator_dropout: float = 0.3  # share of samples trained without indicator, as guidance needs
    num_draws: int = 1  # noise draws per sample, which share the prefix
    reward_config: RewardConfig = field(default_factory=RewardConfig)  # of a value function


@dataclass
class LossWeighting:
    """Weights of the losses: the flow's mean squared error of a policy, a value's cross entropy."""

    MSE: float = 1.0  # of a policy
    CE: float = 1.0  # of a value function


@dataclass
class Env:
    """The environment of evaluations; null type: none."""

    type: str | None = None  # metaworld, libero, libero_10, ...; see pi0/ript/environments.py
    task: str | None = None  # name of a task, or of a LIBERO suite; null: the environment's own choice
    task_ids: list[int] | None = None  # numbers of tasks in the suite
    episode_length: int | None = None  # deadline in policy steps; null: the suite's
    image_size: int | None = None  # pixels of the square images that the policy sees
    render_size: int | None = None  # LIBERO: pixels that are rendered, then resized to image_size
    camera_names: list[str] | None = None  # LIBERO: the policy's names of third-person and wrist view


@dataclass
class EvalSettings:
    """An evaluation."""

    n_episodes: int = 16  # held-out states of each task, an episode from each
    batch_size: int | None = field(default=None, metadata=ROUNDING)  # episodes at once; null: its own
    first_state: int = 0
    states: str = "heldout"  # pi0-eval: or train, whose rollouts may be trained on
    guidance: float = 1.0  # towards a positive advantage
    max_episodes_rendered: int = field(default=1, metadata=SAME)  # of each task, in the video
    recording_root: str | None = None  # pi0-eval: keep the rollouts here as a data set
    num_workers: int = field(default=2, metadata=SAME)  # processes that simulate


@dataclass
class SupervisedSettings:
    """Everything that can be set."""

    policy: PolicySettings = field(default_factory=PolicySettings)
    dataset_mixture: MixtureSettings = field(default_factory=MixtureSettings)
    loss_weighting: LossWeighting = field(default_factory=LossWeighting)
    # samples per optimizer step, of all processes together; null: 32, or as dataloader_batch_size asks
    batch_size: int | None = None
    gradient_accumulation_steps: int = field(default=1, metadata=ROUNDING)  # forward passes for its share
    dataloader_batch_size: int | None = field(default=None, metadata=ROUNDING)  # of one; null: by batch_size
    steps: int = 100_000  # optimizer steps; so are the frequencies
    log_freq: int = field(default=200, metadata=SAME)
    save_freq: int = field(default=20_000, metadata=SAME)  # a checkpoint; one comes after the last step, too
    save_minutes: float | None = field(default=None, metadata=SAME)  # and as many minutes after the last one
    save_total_limit: int = field(default=3, metadata=SAME)  # checkpoints that are kept, besides the best
    val_freq: int = 0  # loss on held-out episodes, and after the last step; 0: train on all episodes
    eval_freq: int = 0  # success in simulation, and after the last step; 0: none
    ema_decay: float | None = None  # moving average of the weights, which is what is saved; openpi: 0.99
    seed: int = 0
    device: str = field(default="auto", metadata=ROUNDING)  # cpu, cuda, cuda:1, ..., or auto
    output_dir: str = field(default="outputs/train", metadata=SAME)
    exp_name: str | None = field(default=None, metadata=SAME)  # directory in output_dir; null: policy.type
    overwrite: bool = field(default=False, metadata=SAME)  # begin again; the earlier run is moved aside
    max_nonfinite_steps: int = field(default=3, metadata=SAME)  # in a row, skipped, before the run stops
    profile_steps: int = field(default=0, metadata=SAME)  # optimizer steps that torch.profiler records
    memory_limit_gb: float | None = field(default=None, metadata=SAME)  # per process; above it the run stops
    plugins: list[str] = field(default_factory=list)  # packages to import: they register what they add
    optimizer: Optimizer = field(default_factory=Optimizer)
    scheduler: Scheduler = field(default_factory=Scheduler)
    env: Env = field(default_factory=Env)
    eval: EvalSettings = field(default_factory=EvalSettings)
    logging: Logging = field(default_factory=Logging, metadata=SAME)
    distributed: Distributed = field(default_factory=Distributed, metadata=SAME)


@dataclass
class RolloutSettings:
    """What pi0-eval takes of a file."""

    policy: PolicySettings = field(default_factory=PolicySettings)
    env: Env = field(default_factory=Env)
    eval: EvalSettings = field(default_factory=EvalSettings)
    seed: int = 0
    device: str = "auto"
    output_dir: str = "outputs/eval"
    plugins: list[str] = field(default_factory=list)

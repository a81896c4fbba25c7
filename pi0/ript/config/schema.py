"""Every setting of a run, with its type and default: from the ninth rung on, the only place of defaults.

The comment behind a field is what `--help` says of it. Its metadata say which result a run has that goes on
with another value, see `pi0.ript.checkpoint.resuming`; without any it cannot go on.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, cast

from pi0.errors import UnusableError
from pi0.ript.envs.base import Split
from pi0.ript.policy_settings import PolicySettings
from pi0.ript.ranges import (
    LONGER,
    ROUNDING,
    SAME,
    Command,
    Count,
    Dtype,
    NotNegative,
    Positive,
    ProperShare,
    Whole,
    one_of,
)

RenderQuality = Annotated[str, one_of("stock", "fast")]
Backend = Annotated[str, one_of("auto", "gloo", "nccl")]
Strategy = Annotated[str, one_of("ddp", "fsdp")]

StatesOf = Annotated[str, one_of("heldout", "validation", "train")]
WandbMode = Annotated[str, one_of("online", "offline", "disabled")]

NO_ENVIRONMENT = "none"
"""The name of the environment where nothing is simulated."""


class ConfigError(UnusableError):
    """What is wrong with a configuration, all of it: one problem per entry of `problems`."""

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        listed = "".join(f"\n  - {problem}" for problem in problems)
        super().__init__(problems[0] if len(problems) == 1 else f"{len(problems)} problems:{listed}")


@dataclass
class WarmStartSettings:
    """Demonstrations and supervised fine-tuning of a toy policy; null: the environment's own."""

    operator: str | None = None  # who demonstrates: see pi0/ript/demonstrations/operators.py
    episodes: Count | None = None  # demonstrations per task
    steps: Count | None = None  # of supervised fine-tuning
    batch_size: Count | None = None
    learning_rate: Positive | None = None
    num_draws: Count | None = None  # noise draws per window
    chunk_size: Count | None = None  # actions that the toy predicts at once
    num_workers: Whole | None = field(default=None, metadata=SAME)  # processes that record demonstrations


@dataclass
class EnvironmentSettings:
    """The environment; arguments of `get_environment`."""

    benchmark_name: str = "metaworld"  # metaworld, libero, a LIBERO suite, ...: see pi0/ript/environments.py
    task_names: list[str | int] | None = None  # names, or numbers in the suite's order; null: its own choice
    max_episode_length: Count | None = None  # deadline in policy steps; null: the suite's
    num_parallel_envs: Count | None = field(default=None, metadata=ROUNDING)  # per process; null: its own
    num_workers: Whole = field(default=2, metadata=SAME)  # processes that simulate
    image_size: Count | None = None  # pixels of the square images that the policy sees
    render_size: Count | None = None  # LIBERO: pixels that are rendered, then resized to image_size
    render_quality: RenderQuality | None = None  # stock or fast
    camera_names: list[str] | None = None  # LIBERO: the policy's names of third-person and wrist view


@dataclass
class TaskSettings(EnvironmentSettings):
    """The environment, and how a toy policy begins; the arguments of `get_environment`."""

    warm_start: WarmStartSettings = field(default_factory=WarmStartSettings)


@dataclass
class Algo:
    """Collecting groups of rollouts and learning from them."""

    rloo_batch_size: int = 8  # rollouts from each initial state (K)
    data_batch_size: Count = 16  # groups of mixed outcome per iteration, of all processes together
    max_sampling_attempts: Count = 32  # states to try for them
    collection_cfg_scale: NotNegative = 2.0  # guidance towards a positive advantage in rollouts
    num_epochs: Count = 8  # passes over the windows of an iteration
    micro_batch_size: Count = 32  # windows per forward pass
    gradient_accumulation_steps: Count = 2  # micro-batches per optimizer step
    lr: Positive = 1e-3  # at the start of an iteration, falling linearly to 0 at its end; for grpo 3e-4
    beta1: ProperShare = 0.9  # of AdamW, and so are the next two
    beta2: ProperShare = 0.95
    weight_decay: NotNegative = 1e-4
    grad_norm_clip: Positive = 1.0
    cfg_uncond_weight: NotNegative = 0.1  # alpha: weight of the loss with the indicator withheld
    num_draws: Count = 2  # noise draws per window
    enable_rollout_stats_tracking: bool = False  # skip mastered states: the last K rollouts succeeded
    rollout_skip_threshold: Count = 3  # skips before a mastered state is tried again
    name: str = "ript"  # the algorithm: ript or grpo; a plugin can register others
    noise_level: Positive = 0.7  # grpo: of the noise that rollouts add in sampling, a in a sqrt(t / (1 - t))
    stochastic_steps: Count = 4  # grpo: inference steps of each chunk that add it
    # grpo: they are drawn from so many of the first ones: the earlier a step, the more its noise decides
    stochastic_among: Count = 4
    clip_range: ProperShare = 0.02  # grpo: how far from 1 the likelihood ratio of a chunk is learned from
    kl_weight: NotNegative = 0.0  # grpo: of the KL divergence to the starting policy, of which a copy is kept

    def acting_policy(self, policy: Any, iteration: int) -> Any:
        """Return who acts in the rollouts of an iteration, as the algorithm of that name says."""
        from pi0.ript.loss import acting_policy  # torch comes with it

        return acting_policy(policy, self, iteration)


@dataclass
class Dataset:
    """Training states and windows."""

    num_init_states: Count = 200  # training states per task
    window_stride: Count = 5  # steps between training windows, besides those where the policy acted
    max_windows_per_episode: Count | None = None  # spread evenly back from its end; 1: the last; null: all


@dataclass
class TrainingSettings:
    """The run."""

    num_train_steps: Count = field(default=3, metadata=LONGER)  # iterations: collect, then improve
    seed: Whole = 0
    save_freq: Count = field(default=1, metadata=SAME)  # iterations between checkpoints
    save_minutes: Positive | None = field(default=None, metadata=SAME)  # in an iteration; null: none there
    keep_last: Count = field(default=3, metadata=SAME)  # checkpoints that are kept
    max_nonfinite_steps: Count = field(default=3, metadata=SAME)  # in a row, skipped, before the run stops
    profile_steps: Whole = field(default=0, metadata=SAME)  # optimizer steps that torch.profiler records
    memory_limit_gb: Positive | None = field(default=None, metadata=SAME)  # per process; above it: a stop


@dataclass
class Distributed:
    """Several processes, started by torchrun."""

    backend: Backend = "auto"  # gloo, nccl, or auto: nccl for GPUs, gloo for CPUs
    timeout_seconds: Count = 1800  # to wait for a peer; rollouts of the slowest process must fit
    strategy: Strategy = "ddp"  # ddp: every process holds the whole model; fsdp: a part of what is trained
    # fsdp: in which large weights travel and compute; null: the computation's (policy.dtype)
    gather_dtype: Dtype | None = None
    background_checkpoints: bool = False  # written from a copy in memory while the training goes on


@dataclass
class Storage:
    """Directories that a machine has for itself; the run's own is shared by all machines."""

    local: str | None = None  # of temporary files of simulators and loaders; null: the system's


@dataclass
class Eval:
    """The evaluation before and after training."""

    rollouts_per_task: Count = 50  # held-out states; LIBERO has 50
    first_state: Whole = 0  # number of the first of them
    cfg_guidance_scale: NotNegative = 2.0  # towards a positive advantage
    n_video: Whole = 6  # episodes per task in the video


@dataclass
class EvalSettings(Eval):
    """The evaluations of pi0-train and pi0-eval."""

    rollouts_per_task: Count = 16  # held-out states, an episode from each; LIBERO has 50
    cfg_guidance_scale: NotNegative = 1.0  # towards a positive advantage; 1: given, 0: withheld
    n_video: Whole = field(default=1, metadata=SAME)  # episodes per task in the video
    states: StatesOf | None = None  # heldout, validation or train; null: train if recording, else heldout
    recording_root: str | None = None  # pi0-eval: keep the rollouts here as a LeRobotDataset v3 with labels

    @property
    def split(self) -> Split:
        """Return which states the episodes begin from."""
        return cast("Split", self.states or ("train" if self.recording_root else "heldout"))


@dataclass
class Logging:
    """Weights & Biases; log files and metrics are written in any case."""

    use_wandb: bool = False
    wandb_project: str = "ript-pi0"
    wandb_entity: str | None = None
    wandb_mode: WandbMode = "offline"  # online, offline or disabled
    # A command of yours, run without a shell when the run stalls, fails or finishes; PI0_EVENT, PI0_RUN and
    # PI0_REASON in its environment say what happened.
    on_event: Command | None = None
    stalled_after_s: Positive = 1800.0  # without progress


@dataclass
class TrainConfig:
    """Everything that can be set; the defaults learn the embedded task in minutes on a laptop CPU."""

    exp_name: str = field(default="ript", metadata=SAME)  # the run is written to output_dir/exp_name
    policy_path: str = "toy"  # trained here on demonstrations; or a pi0 checkpoint
    device: str = field(default="auto", metadata=ROUNDING)  # auto: a GPU if there is one; cpu, cuda, ...
    output_dir: str = field(default="pi0/ript/output", metadata=SAME)
    warm_start_dir: str = field(default="pi0/ript/output/warm_start", metadata=SAME)  # cache of toy policies
    resume: str | None = field(default=None, metadata=SAME)  # auto: the newest checkpoint; or one's path
    plugins: list[str] = field(default_factory=list)  # packages to import: they register what they add
    task: TaskSettings = field(default_factory=TaskSettings)
    policy: PolicySettings = field(default_factory=PolicySettings)
    algo: Algo = field(default_factory=Algo)
    dataset: Dataset = field(default_factory=Dataset)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    distributed: Distributed = field(default_factory=Distributed, metadata=SAME)
    storage: Storage = field(default_factory=Storage, metadata=SAME)
    eval: Eval = field(default_factory=Eval)
    logging: Logging = field(default_factory=Logging, metadata=SAME)

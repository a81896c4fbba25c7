"""Every setting of supervised training, with its type and default; sections that RIPT has too are RIPT's.

What other programs call it is in pi0/ript/config/aliases.py. The comment behind a field is what `--help` says
of it.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any

from pi0.ript.config.schema import (
    NO_ENVIRONMENT,
    Distributed,
    EnvironmentSettings,
    EvalSettings,
    Logging,
    Storage,
)
from pi0.ript.data.settings import MixtureSettings, Mode
from pi0.ript.labels.settings import RewardConfig
from pi0.ript.policy_settings import TOY, PolicySettings
from pi0.ript.ranges import (
    ROUNDING,
    SAME,
    Count,
    Indicator,
    NotNegative,
    Positive,
    ProperShare,
    Share,
    StatisticsOf,
    ValueForm,
    Whole,
    one_of,
)
from pi0.ript.training.settings import Optimizer, Scheduler

BATCH_SIZE = 32
"""Where the settings ask for none."""

ModelType = Annotated[str, one_of("pi0", "value")]
Normalization = Annotated[str, one_of("MEAN_STD", "MIN_MAX", "QUANTILES", "IDENTITY")]
OutsideStatistics = Annotated[str, one_of("refuse", "widen")]
MissingAdvantage = Annotated[str, one_of("error", "positive", "negative", "drop")]


@dataclass
class NormalizationMapping:
    """What the configuration expects of the model; one that the checkpoint contradicts is an error."""

    VISUAL: Annotated[str, one_of("IDENTITY")] = "IDENTITY"  # images are always scaled to [-1, 1]
    STATE: Normalization | None = None  # MEAN_STD, MIN_MAX, QUANTILES, IDENTITY; null: as the checkpoint says
    ACTION: Normalization | None = None  # the same
    VALUE: str | None = None  # without effect: reward_config scales returns to [-1, 0]


@dataclass
class ModelSettings(PolicySettings):
    """The model that is trained: a pi0 policy, or a value function."""

    gradient_checkpointing: bool = field(default=False, metadata=ROUNDING)  # less memory, a third more time
    type: ModelType = "pi0"  # pi0 or value
    reads: str | None = None  # of a value function: the policy whose images and prompts it reads
    form: ValueForm = "expert"  # of a new value function that reads a policy: expert (its prefix) or separate
    width: Count = 64  # of a new expert
    # checkpoint, or data: normalisation and widths of state and action are those of the data sets
    statistics: StatisticsOf = "checkpoint"
    # where training data lie far outside of them: refuse, or widen the statistics of that dimension
    outside_statistics: OutsideStatistics = "refuse"
    normalization_mapping: NormalizationMapping = field(default_factory=NormalizationMapping)
    n_obs_steps: Annotated[int, one_of(1)] = 1  # pi0 sees one observation
    chunk_size: Count | None = None  # actions predicted at once; null: as the checkpoint says, a toy 8
    max_state_dim: Count | None = None  # zero-padded width; null: as the checkpoint says, a toy the data's
    max_action_dim: Count | None = None  # the same
    tokenizer_max_length: Count | None = None  # prompt tokens; null: as the checkpoint says
    advantage: Mode = "on"  # on: always positive; use: by meta/advantages.json; ignore: no indicator
    advantage_threshold: float | None = None  # positive above it; null: the one that pi0-advantage chose
    missing_advantage: MissingAdvantage = "error"  # of a frame: error, positive, negative, drop (not drawn)
    use_awr: bool = False  # weigh each sample by min(exp(A / awr_beta), awr_max_weight) as well
    awr_beta: Positive = 1.0
    awr_max_weight: Positive = 10.0
    indicator: Indicator | None = None  # embedding (state token) or text (prompt); null: the checkpoint's
    indicator_dropout: Share = 0.3  # share of samples trained without indicator, as guidance needs
    num_draws: Count = 1  # noise draws per sample, which share the prefix
    reward_config: RewardConfig = field(default_factory=RewardConfig)  # of a value function

    def changes(self) -> dict[str, Any]:
        """Return the fields of the model's own configuration that are to be others."""
        names = ("chunk_size", "max_state_dim", "max_action_dim", "tokenizer_max_length")
        sizes = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return {**super().changes(), **sizes}


@dataclass
class LossWeighting:
    """Weights of the losses: the flow's mean squared error of a policy, a value's cross entropy."""

    MSE: NotNegative = 1.0  # of a policy
    CE: NotNegative = 1.0  # of a value function


@dataclass
class SupervisedSettings:
    """Everything that can be set."""

    policy_path: str = TOY  # checkpoint of a policy or of a value function; toy: a small new one for the data
    policy: ModelSettings = field(default_factory=ModelSettings)
    dataset_mixture: MixtureSettings = field(default_factory=MixtureSettings)
    loss_weighting: LossWeighting = field(default_factory=LossWeighting)
    # samples per optimizer step, of all processes together; null: 32, or as dataloader_batch_size asks
    batch_size: Count | None = None
    gradient_accumulation_steps: Count = field(default=1, metadata=ROUNDING)  # forward passes for its share
    dataloader_batch_size: Count | None = field(default=None, metadata=ROUNDING)  # null: by batch_size
    steps: Count = 100_000  # optimizer steps; so are the frequencies
    log_freq: Count = field(default=200, metadata=SAME)
    save_freq: Count = field(default=20_000, metadata=SAME)  # a checkpoint; one comes after the last step
    save_minutes: Positive | None = field(default=None, metadata=SAME)  # a checkpoint after as many, too
    save_total_limit: Count = field(default=3, metadata=SAME)  # checkpoints that are kept, besides the best
    val_freq: Whole = 0  # loss on held-out episodes, and after the last step; 0: train on all episodes
    eval_freq: Whole = 0  # success in simulation, and after the last step; 0: none
    ema_decay: ProperShare | None = None  # moving average of weights, which is what is saved; openpi: 0.99
    seed: Whole = 0
    device: str = field(default="auto", metadata=ROUNDING)  # cpu, cuda, cuda:1, ..., or auto
    output_dir: str = field(default="outputs/train", metadata=SAME)
    exp_name: str | None = field(default=None, metadata=SAME)  # directory in output_dir; null: TIME_TYPE
    resume: bool = field(default=False, metadata=SAME)  # without exp_name: go on with the newest of the type
    overwrite: bool = field(default=False, metadata=SAME)  # begin again; the earlier run is moved aside
    max_nonfinite_steps: Count = field(default=3, metadata=SAME)  # in a row, skipped, before the run stops
    profile_steps: Whole = field(default=0, metadata=SAME)  # optimizer steps that torch.profiler records
    memory_limit_gb: Positive | None = field(default=None, metadata=SAME)  # per process; above it: a stop
    plugins: list[str] = field(default_factory=list)  # packages to import: they register what they add
    optimizer: Optimizer = field(default_factory=Optimizer)
    scheduler: Scheduler = field(default_factory=Scheduler)
    task: EnvironmentSettings = field(default_factory=lambda: EnvironmentSettings(NO_ENVIRONMENT))
    eval: EvalSettings = field(default_factory=EvalSettings)
    logging: Logging = field(default_factory=Logging, metadata=SAME)
    distributed: Distributed = field(default_factory=Distributed, metadata=SAME)
    storage: Storage = field(default_factory=Storage, metadata=SAME)

"""Every setting of a RECAP run, with its type and default.

The comment behind a field is what `--help` says of it.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from pi0.ript.config.schema import Distributed, EnvironmentSettings, Eval, Logging, Storage
from pi0.ript.data.settings import ADVANTAGE_MODES
from pi0.ript.labels.settings import Advantage, RewardConfig
from pi0.ript.policy_settings import PolicySettings, PrefixPlace
from pi0.ript.ranges import (
    SAME,
    Count,
    Indicator,
    NotNegative,
    Positive,
    StatisticsOf,
    ValueForm,
    Whole,
    one_of,
)
from pi0.ript.training.settings import PolicyTraining, ValueTraining

OnStale = Literal["refuse", "redo"]
SftAdvantage = Annotated[str, one_of("on", "ignore")]
DemonstrationMode = Annotated[str, one_of("leave_out", *ADVANTAGE_MODES)]
PolicyObjectiveName = Annotated[str, one_of("ript", "indicator")]
ValueStart = Annotated[str, one_of("pretrained", "previous")]
PolicyStart = Annotated[str, one_of("sft", "previous")]


@dataclass
class RecapPolicy(PolicySettings):
    """The policy that SFT starts from."""

    indicator: Indicator = "embedding"  # how the advantage enters: embedding (state token) or text (prompt)
    # checkpoint, or data: normalisation and widths are those of the demonstrations; null: checkpoint
    statistics: StatisticsOf | None = None
    chunk_size: Count | None = None  # of a toy: actions that it predicts at once; null: the environment's own
    threads: Whole = field(default=0, metadata=SAME)  # torch's, on a CPU; 0: what suits model and cores
    # as in PolicySettings
    prefix_cache_gib: NotNegative = field(default=0.0, metadata=SAME)
    prefix_cache: PrefixPlace = field(default="memory", metadata=SAME)


@dataclass
class Quality:
    """How good the operator is; null: as the environment says."""

    noise: float | None = None  # standard deviation of the noise on an action, in action units
    hesitation: float | None = None  # fraction of the time spent hesitating
    hesitation_speed: float | None = None  # factor on the movement meanwhile
    misled: float | None = None  # fraction of the episodes with a mistake
    patience: float | None = None  # deadline of the recording, in deadlines of the task

    def changes(self) -> dict[str, float]:
        """Return what is not null."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass
class Demonstrations:
    """What SFT learns from: a data set, or what a scripted operator does in the simulator."""

    root: str | None = None  # directory of a LeRobotDataset v3; null: recorded in the run
    repo_id: str | None = None  # its name on the hub, in place of root
    data_features_name_mapping: dict[str, str | None] = field(default_factory=dict)  # as in a dataset_mixture
    allow_heldout: bool = False  # take a root with rollouts from held-out states, on which success is judged
    assume_success: bool = False  # take every episode of a data set without labels for a success
    operator: str | None = None  # who demonstrates: see pi0/ript/demonstrations/operators.py
    quality: Quality = field(default_factory=Quality)
    episodes: Count | None = None  # per task
    num_workers: Whole = 2  # processes that record
    sft_advantage: SftAdvantage = "on"  # the indicator in SFT: on (always positive) or ignore (none)
    advantage: DemonstrationMode = "leave_out"  # and in fine-tuning: leave_out, use (the value), on or ignore


@dataclass
class ValueModel:
    """What kind of model the value function is."""

    form: ValueForm = "expert"  # expert: reads the SFT policy's prefix; separate: begins with its eyes
    width: Count = 64  # of the expert


@dataclass
class Value(ValueModel):
    """The value function."""

    start_from: ValueStart = "pretrained"  # what a round's fine-tuning starts from: pretrained or previous
    pretraining: ValueTraining = field(default_factory=lambda: ValueTraining(steps=200))
    finetuning: ValueTraining = field(default_factory=ValueTraining)


@dataclass
class RolloutPlan:
    """What is collected, and how."""

    num_states: Count = 32  # initial states of all tasks together
    per_state: Count = 8  # episodes from each
    pool_size: Count = 500  # training states per task that they are drawn from, without repetition
    guidance: NotNegative = 3.0  # towards a positive advantage; the SFT policy is always used with 1


@dataclass
class Rollouts(RolloutPlan):
    """What a round collects."""

    keep_rounds: Count = 1  # how many rounds' rollouts are trained on; older ones are left out


@dataclass
class FineTuning:
    """The policy's training in each round."""

    start_from: PolicyStart = "previous"  # sft or previous
    # ript imitates what is positive, and everything a little without indicator; indicator imitates
    # everything, each frame with its own.
    objective: PolicyObjectiveName = "ript"  # ript, or indicator
    uncond_weight: NotNegative = 0.1  # of ript: of the loss with the indicator withheld
    training: PolicyTraining = field(default_factory=lambda: PolicyTraining(steps=300))


@dataclass
class Gates:
    """The least that the figures must reach; set one to its worst value to open that gate."""

    min_concordance: float = 0.55  # chance that the better of two episodes is valued above the other; 0: open
    undecided: Annotated[str, one_of("stop", "go")] = "stop"  # where the held-out episodes cannot tell
    min_coverage: float = 1.0  # share of frames that have an advantage
    max_fraction_error: float = 0.05  # of the positive share over all ranked frames


@dataclass
class Validation:
    """How the round to publish is chosen: on states that are neither trained on nor reported."""

    rollouts_per_task: Whole = 50  # validation states; 0: the last round is published
    discard_worse: bool = True  # a round that is worse (paired 95% interval below zero) is not built upon
    # Of each round's policy, for each task by itself; rollouts keep rollouts.guidance.
    guidances: list[NotNegative] | None = (
        None  # tried there besides eval.cfg_guidance_scale, the best is acted with; null: none
    )


@dataclass
class RecapConfig:
    """Everything that can be set; the defaults learn the embedded task in minutes on a laptop CPU."""

    algorithm: str = "recap"  # what tells this file from one of RIPT
    exp_name: str = "recap"  # the run is written to output_dir/exp_name; started again, it goes on there
    policy_path: str = "toy"  # trained here on the demonstrations; or a pi0 checkpoint
    device: str = "auto"  # auto: a GPU if there is one; cpu, cuda, cuda:1, ...
    output_dir: str = "pi0/ript/output"
    seed: Whole = 0
    rounds: Count = 2  # of rollouts, value, advantages, policy
    skip_sft: bool = False  # a checkpoint that needs none
    on_stale: Annotated[str, one_of(*get_args(OnStale))] = (
        "refuse"  # a stage whose inputs have changed: refuse, or redo (the old one is kept)
    )
    baselines: bool = False  # also train on the demonstrations alone, and on successes alone, to compare
    filtered_rounds: Whole = 0  # to compare: rounds of imitating the successes among a policy's own rollouts
    save_minutes: Positive | None = (
        10.0  # between snapshots of a training; one comes at its end and at a stop
    )
    cache_gib: NotNegative = 1.0  # of a machine, for decoded images of all data sets together
    max_nonfinite_steps: Count = 3  # optimizer steps in a row without a finite loss before the run stops
    plugins: list[str] = field(default_factory=list)  # packages to import: they register what they add
    task: EnvironmentSettings = field(default_factory=EnvironmentSettings)
    policy: RecapPolicy = field(default_factory=RecapPolicy)
    demonstrations: Demonstrations = field(default_factory=Demonstrations)
    sft: PolicyTraining = field(default_factory=lambda: PolicyTraining(steps=500, decay_fraction=0.7))
    value: Value = field(default_factory=Value)
    reward: RewardConfig = field(default_factory=RewardConfig)
    rollouts: Rollouts = field(default_factory=Rollouts)
    advantage: Advantage = field(default_factory=lambda: Advantage(0.6, ranked="successes"))
    finetuning: FineTuning = field(default_factory=FineTuning)
    gates: Gates = field(default_factory=Gates)
    validation: Validation = field(default_factory=Validation)
    eval: Eval = field(default_factory=lambda: Eval(cfg_guidance_scale=3.0))
    distributed: Distributed = field(default_factory=Distributed)
    storage: Storage = field(default_factory=Storage)
    logging: Logging = field(default_factory=Logging)


def tried_guidances(config: RecapConfig) -> list[float]:
    """Return the guidances that the policy of a round is tried with on validation states, its own first."""
    settings = config.validation
    others = (settings.guidances or []) if settings.rollouts_per_task else []
    return list(dict.fromkeys([config.eval.cfg_guidance_scale, *others]))

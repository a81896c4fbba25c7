"""What a training is made of: the objective with its model, and the data."""

from dataclasses import dataclass, replace
from pathlib import Path

from pi0.ript.config import ConfigError
from pi0.ript.data.records import require_training_states
from pi0.ript.data.settings import MixtureSettings, tagged
from pi0.ript.data.training_data import TrainingData, make_training_data
from pi0.ript.distributed import World
from pi0.ript.labels.settings import RewardConfig
from pi0.ript.supervised.embodiments import robots_of_sets
from pi0.ript.supervised.models import DataSummary, fit_statistics, policy_to_train, value_to_train
from pi0.ript.supervised.settings import BATCH_SIZE, SupervisedSettings
from pi0.ript.supervised.window_labels import PolicyLabels, advantage_modes, policy_labels, window_returns
from pi0.ript.training.objectives import Objective, PolicyObjective, ValueObjective


@dataclass(frozen=True)
class Parts:
    """What a training is made of."""

    objective: Objective
    data: TrainingData
    reward: RewardConfig | None = None
    notes: tuple[str, ...] = ()
    """What is to be said of them at the start, a line each."""


def make_parts(settings: SupervisedSettings, world: World) -> Parts:
    """Return objective and data, as the settings say."""
    mixture = settings.dataset_mixture if settings.val_freq else _without_split(settings.dataset_mixture)
    policy, device = settings.policy, world.device(settings.device)
    mixture = tagged(mixture, policy.embodiment)
    settings = replace(settings, dataset_mixture=mixture)
    summary = DataSummary(mixture)
    judged = [] if mixture.allow_heldout else [Path(frames.name) for frames in summary.sets]
    doubts = [require_training_states(root, "dataset_mixture.allow_heldout=true") for root in judged]
    doubtful = tuple(line for line in doubts if line is not None)
    size = samples_per_step(settings, world) // (world.size * settings.gradient_accumulation_steps)
    if policy.type == "value":
        value = value_to_train(settings, summary, device)
        data = make_training_data(mixture, value.features, 1, size, world, settings.seed)
        _require_validation(settings, data)
        notes = (str(data), *doubtful, *fit_statistics(value, settings, data))
        returns, reward = window_returns(data.sets, policy.reward_config)
        return Parts(ValueObjective(value, returns, settings.loss_weighting.CE), data, reward, notes)
    takes_indicator = set(advantage_modes(mixture.datasets, policy)) != {"ignore"}
    needs_labels = takes_indicator or policy.use_awr
    labels = policy_labels(summary.sets, mixture.datasets, policy) if needs_labels else PolicyLabels()
    model = policy_to_train(settings, summary, takes_indicator, device)
    chunk, seed = model.config.chunk_size, settings.seed
    robots = robots_of_sets(model, mixture)
    features = model.features if robots is None else model.embodiments.joint_features
    data = make_training_data(mixture, features, chunk, size, world, seed, labels.usable, robots=robots)
    _require_validation(settings, data)
    notes = [str(data), *doubtful, *fit_statistics(model, settings, data)]
    objective = PolicyObjective(
        model,
        labels.indicator if takes_indicator else None,
        policy.indicator_dropout,
        policy.num_draws,
        settings.loss_weighting.MSE,
        labels.weight,
    )
    if labels.num_dropped:
        notes.append(f"advantages: {labels.num_dropped} frames have none and are left out")
    if objective.positive_share is not None:
        share = objective.positive_share
        notes.append(f"indicator of the advantage: positive in {share:.1%} of the frames")
    return Parts(objective, data, notes=tuple(notes))


def _without_split(mixture: MixtureSettings) -> MixtureSettings:
    """Return the mixture with all episodes for training."""
    datasets = [replace(dataset, val_split_ratio=None) for dataset in mixture.datasets]
    return replace(mixture, datasets=datasets, val_split_ratio=0.0)


def _require_validation(settings: SupervisedSettings, data: TrainingData) -> None:
    if settings.val_freq and data.validation is None:
        raise ConfigError(
            "val_freq: expected episodes to validate on, found none; raise dataset_mixture.val_split_ratio, "
            "give two episodes or more, or set val_freq=0"
        )


def samples_per_step(settings: SupervisedSettings, world: World) -> int:
    """Return the samples of an optimizer step, of all processes together.

    Raises:
        ConfigError: They cannot be shared equally, or not in forward passes of dataloader_batch_size.
    """
    batch_size, loaded = settings.batch_size, settings.dataloader_batch_size
    passes = world.size * settings.gradient_accumulation_steps
    product = f"{world.size} processes x gradient_accumulation_steps={settings.gradient_accumulation_steps}"
    if batch_size is None:
        batch_size = BATCH_SIZE if loaded is None else loaded * passes
    if batch_size % passes:
        raise ConfigError(f"batch_size: expected a multiple of {passes} ({product}), found {batch_size}")
    if loaded not in (None, batch_size // passes):
        raise ConfigError(
            f"dataloader_batch_size: expected {batch_size // passes}, which is batch_size={batch_size} by "
            f"{passes} ({product}), found {loaded}; leave one of the two out"
        )
    return batch_size

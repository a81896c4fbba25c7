"""Checks of the settings before any work: all that need no data and no simulator, most of them no torch."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pi0.ript.config import ConfigError
from pi0.ript.config.validation import attempt, moved_aside, simulated, wrong_places, wrong_policy
from pi0.ript.data.settings import mixture_problems, sets_by_robot, tagged
from pi0.ript.policy_settings import TOY, require_device_name, require_policy_path
from pi0.ript.ranges import wrong_values
from pi0.ript.supervised.settings import BATCH_SIZE, SupervisedSettings


def validate_settings(settings: SupervisedSettings) -> None:
    """Raise one ConfigError that tells everything that is wrong with the settings, if anything is.

    What needs torch to tell is looked at once nothing else is wrong.
    """
    check_settings(settings)
    from pi0.ript.config.loadable import wrong_device, wrong_weights  # torch comes with it

    is_policy = settings.policy.type == "pi0"
    if problems := [*wrong_device(settings), *(wrong_weights(settings) if is_policy else ())]:
        raise ConfigError(*problems)


def check_settings(settings: SupervisedSettings) -> None:
    """Raise one ConfigError that tells everything that is wrong at first sight, if anything is."""
    mixture = tagged(settings.dataset_mixture, settings.policy.embodiment)
    settings = replace(settings, dataset_mixture=mixture)
    problems = [
        *wrong_values(settings),
        *wrong_places(settings),
        *_batches(settings),
        *_models(settings),
        *_measurements(settings),
        *mixture_problems(mixture),
    ]
    if settings.overwrite and settings.exp_name:
        problems += moved_aside(settings, Path(settings.output_dir) / settings.exp_name)
    problems += attempt(lambda: require_device_name(settings.device))[1]
    if problems:
        raise ConfigError(*problems)


def _batches(settings: SupervisedSettings) -> Iterator[str]:
    batch_size, passes = settings.batch_size, settings.gradient_accumulation_steps
    if batch_size is None and settings.dataloader_batch_size is None:
        batch_size = BATCH_SIZE
    if batch_size is not None and passes >= 1 and batch_size % passes:
        yield (
            f"batch_size: expected a multiple of gradient_accumulation_steps={passes}, into which it is "
            f"split, found {batch_size}"
        )


def _models(settings: SupervisedSettings) -> Iterator[str]:
    policy, betas = settings.policy, settings.optimizer.betas
    if policy.reads is not None:
        yield from attempt(lambda: require_policy_path(str(policy.reads), "policy.reads"))[1]
    if len(betas) != 2 or not all(0.0 <= beta < 1.0 for beta in betas):
        yield f"optimizer.betas: expected two numbers from 0 to below 1, found {betas}"
    yield from _value_function(settings) if policy.type == "value" else _policy(settings)


def _policy(settings: SupervisedSettings) -> Iterator[str]:
    yield from wrong_policy(settings)
    if settings.policy.reads is not None:
        yield "policy.reads: belongs to a value function; a policy starts from policy_path"
    if settings.policy_path == TOY and settings.policy.gradient_checkpointing:
        yield "policy.gradient_checkpointing: a toy has no need of it; leave it out"
    if settings.policy_path == TOY and settings.policy.statistics_path is not None:
        yield "policy.statistics_path: a toy has the statistics of its data; leave it out"
    tags = [tag for tag in sets_by_robot(settings.dataset_mixture) if tag is not None]
    if len(tags) > 1 and settings.policy.statistics_path is not None:
        yield (
            f"policy.statistics_path: is of one robot, and the data sets are of {', '.join(tags)}; use "
            "policy.statistics=data"
        )
    if len(tags) > 1 and settings.policy.embodiment is None and settings.eval_freq:
        yield (
            f"policy.embodiment: expected one of {', '.join(tags)}, as which the policy acts in the "
            "simulations of eval_freq, found none"
        )
    if not settings.loss_weighting.MSE:
        yield "loss_weighting.MSE: a policy learns by the flow's squared error; expected a weight above 0"


def _value_function(settings: SupervisedSettings) -> Iterator[str]:
    path = settings.policy_path
    if path != TOY and not Path(path).expanduser().is_dir():
        yield (
            "policy_path: expected the directory of a value function that pi0-train or RECAP wrote, found "
            f"nothing at {path!r}"
        )
    if settings.policy.statistics_path is not None or settings.policy.outside_statistics != "refuse":
        yield (
            "policy.statistics_path, policy.outside_statistics: belong to policies; a value function has the "
            "statistics of its checkpoint, of the policy that it reads, or of its data"
        )
    if settings.policy.embodiment is not None and settings.policy.reads is None:
        yield "policy.embodiment: of the policy that a value function reads, and policy.reads is null"
    if settings.policy.use_awr:
        yield "policy.use_awr: weighs the samples of a policy; a value function learns from all alike"
    if not settings.loss_weighting.CE:
        yield "loss_weighting.CE: a value function learns by cross entropy; expected a weight above 0"


def _measurements(settings: SupervisedSettings) -> Iterator[str]:
    if settings.eval.recording_root is not None:
        yield "eval.recording_root: training keeps no rollouts; record them with pi0-eval"
    if settings.eval.split != "heldout":
        yield "eval.states: training is judged on held-out states; found " + repr(settings.eval.states)
    if not settings.eval_freq:
        return
    if settings.policy.type == "value":
        yield "eval_freq: a value function does not act; use val_freq"
    else:
        yield from simulated(settings)[1]

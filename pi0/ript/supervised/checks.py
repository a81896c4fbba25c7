"""Checks of the settings before any work: all that need no data, no weights and no simulator."""

import re
from collections.abc import Iterator
from pathlib import Path

from pi0.registry import get_config
from pi0.ript.config import ConfigError
from pi0.ript.config.ranges import Ranges
from pi0.ript.config.validation import attempt
from pi0.ript.data.settings import ADVANTAGE_MODES, check_mixture
from pi0.ript.starting_policy import TOY, require_device, require_policy_path
from pi0.ript.supervised.settings import BATCH_SIZE, SupervisedSettings
from pi0.ript.supervised.simulation import make_environment

_RANGES = Ranges(
    counts=(
        *("batch_size", "gradient_accumulation_steps", "dataloader_batch_size", "steps"),
        *("log_freq", "save_freq", "save_total_limit", "max_nonfinite_steps"),
        *("policy.num_draws", "policy.width", "policy.chunk_size", "policy.n_action_steps"),
        *("policy.max_state_dim", "policy.max_action_dim", "policy.tokenizer_max_length"),
        *("scheduler.num_decay_steps", "eval.n_episodes", "eval.batch_size", "env.episode_length"),
    ),
    positive=(
        *("optimizer.lr", "optimizer.indicator_lr", "optimizer.eps", "optimizer.grad_clip_norm"),
        *("policy.awr_beta", "policy.awr_max_weight", "memory_limit_gb", "save_minutes"),
    ),
    not_negative=(
        *(
            "val_freq",
            "eval_freq",
            "seed",
            "profile_steps",
            "scheduler.num_warmup_steps",
            "scheduler.decay_lr",
        ),
        *("optimizer.weight_decay", "loss_weighting.MSE", "loss_weighting.CE", "eval.first_state"),
        *("eval.guidance", "eval.max_episodes_rendered", "eval.num_workers"),
    ),
    choices={
        "policy.type": ("pi0", "value"),
        "policy.form": ("expert", "separate"),
        "policy.dtype": ("float32", "bfloat16"),
        "policy.statistics": ("checkpoint", "data"),
        "policy.advantage": ADVANTAGE_MODES,
        "policy.missing_advantage": ("error", "positive", "negative", "drop"),
        "policy.indicator": ("embedding", "text"),
        "policy.n_obs_steps": (1,),
        "optimizer.type": ("adamw",),
        "scheduler.type": ("cosine_decay_with_warmup", "constant"),
        "policy.normalization_mapping.VISUAL": ("IDENTITY",),
        "policy.normalization_mapping.STATE": ("MEAN_STD", "MIN_MAX", "QUANTILES", "IDENTITY"),
        "policy.normalization_mapping.ACTION": ("MEAN_STD", "MIN_MAX", "QUANTILES", "IDENTITY"),
        "distributed.backend": ("auto", "gloo", "nccl"),
        "logging.wandb_mode": ("online", "offline", "disabled"),
    },
)


def check_settings(settings: SupervisedSettings) -> None:
    """Raise one ConfigError that tells everything that is wrong with the settings, if anything is."""
    problems = [
        *_ranges(settings),
        *_batches(settings),
        *_places(settings),
        *_models(settings),
        *_measurements(settings),
    ]
    problems += attempt(lambda: require_device(settings.device))[1]
    problems += attempt(lambda: check_mixture(settings.dataset_mixture))[1]
    if problems:
        raise ConfigError(*problems)


def _ranges(settings: SupervisedSettings) -> Iterator[str]:
    yield from _RANGES.problems(settings)
    if not 0.0 <= settings.policy.indicator_dropout <= 1.0:
        yield f"policy.indicator_dropout: expected a share, found {settings.policy.indicator_dropout}"
    if settings.ema_decay is not None and not 0.0 < settings.ema_decay < 1.0:
        yield f"ema_decay: expected a number between 0 and 1, or null, found {settings.ema_decay}"
    if len(settings.optimizer.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in settings.optimizer.betas):
        yield f"optimizer.betas: expected two numbers from 0 to below 1, found {settings.optimizer.betas}"


def _batches(settings: SupervisedSettings) -> Iterator[str]:
    batch_size, passes = settings.batch_size, settings.gradient_accumulation_steps
    if batch_size is None and settings.dataloader_batch_size is None:
        batch_size = BATCH_SIZE
    if batch_size is not None and passes >= 1 and batch_size % passes:
        yield (
            f"batch_size: expected a multiple of gradient_accumulation_steps={passes}, into which it is "
            f"split, found {batch_size}"
        )


def _places(settings: SupervisedSettings) -> Iterator[str]:
    if not re.fullmatch(r"\w[\w.=,+-]*", run_name(settings)):
        yield f"exp_name: expected a name for a directory (letters, digits, _.-), found {settings.exp_name!r}"
    place = Path(settings.output_dir).expanduser()
    file = next((one for one in (place, *place.parents) if one.exists() and not one.is_dir()), None)
    if not place.name or file:
        yield f"output_dir: expected a directory, found {str(file or place)!r}"


def _models(settings: SupervisedSettings) -> Iterator[str]:
    policy = settings.policy
    paths = {"policy_path": policy.policy_path}
    if policy.type == "pi0":
        paths["pretrained_path"] = policy.pretrained_path
    for name, path in paths.items():
        if path not in (None, TOY):
            yield from attempt(lambda p=path, n=name: require_policy_path(p, f"policy.{n}"))[1]
    if policy.config is not None:
        yield from attempt(lambda: get_config(str(policy.config)), "policy.config: ")[1]
    if policy.type == "value":
        yield from _value_function(settings)
    else:
        if policy.policy_path is not None:
            yield "policy.policy_path: belongs to a value function; a policy starts from pretrained_path"
        if not settings.loss_weighting.MSE:
            yield "loss_weighting.MSE: a policy learns by the flow's squared error; expected a weight above 0"


def _value_function(settings: SupervisedSettings) -> Iterator[str]:
    policy = settings.policy
    is_new = policy.pretrained_path in (None, TOY)
    if not is_new and not Path(str(policy.pretrained_path)).expanduser().is_dir():
        yield (
            f"policy.pretrained_path: expected the directory of a value function that pi0-train or RECAP "
            f"wrote, found nothing at {policy.pretrained_path!r}"
        )
    if policy.use_awr:
        yield "policy.use_awr: weighs the samples of a policy; a value function learns from all alike"
    if not settings.loss_weighting.CE:
        yield "loss_weighting.CE: a value function learns by cross entropy; expected a weight above 0"


def _measurements(settings: SupervisedSettings) -> Iterator[str]:
    if settings.eval.recording_root is not None:
        yield "eval.recording_root: training keeps no rollouts; record them with pi0-eval"
    if settings.eval.states != "heldout":
        yield "eval.states: training is judged on held-out states; found " + repr(settings.eval.states)
    if not settings.eval_freq:
        return
    if settings.policy.type == "value":
        yield "eval_freq: a value function does not act; use val_freq"
    elif settings.env.type is None:
        yield "eval_freq: expected an environment to evaluate in, found env.type=null"
    else:
        environment, wrong = attempt(lambda: make_environment(settings.env, settings.eval), "env: ")
        yield from wrong
        if environment is not None:
            yield from attempt(environment.suite, "env: ")[1]


def run_name(settings: SupervisedSettings) -> str:
    """Return the name of the run's directory."""
    return settings.exp_name or settings.policy.type

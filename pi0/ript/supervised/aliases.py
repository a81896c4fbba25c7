"""Keys that other trainers' files write differently: the guide's, OpenTau's and GR00T's."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pi0.registry import did_you_mean
from pi0.ript.config.legacy_keys import Translation, unknown_key
from pi0.ript.data import DatasetSettings

DEFAULT_RECORDING = "data/rollouts"

RENAMED = {
    "action_chunk": "policy.chunk_size",
    "base_model_path": "policy.pretrained_path",
    "dataloader_num_workers": "dataset_mixture.num_workers",
    "env.num_envs": "eval.batch_size",
    "env.suite": "env.type",
    "eval.num_episodes": "eval.n_episodes",
    "experiment_name": "exp_name",
    "global_batch_size": "batch_size",
    "learning_rate": "optimizer.lr",
    "logging_steps": "log_freq",
    "max_action_dim": "policy.max_action_dim",
    "max_state_dim": "policy.max_state_dim",
    "max_steps": "steps",
    "num_workers": "dataset_mixture.num_workers",
    "policy.prompt_max_length": "policy.tokenizer_max_length",
    "prefetch_factor": "dataset_mixture.prefetch_factor",
    "save_steps": "save_freq",
    "scheduler.peak_lr": "optimizer.lr",
    "start_from_checkpoint": "policy.pretrained_path",
    "use_wandb": "logging.use_wandb",
    "wandb.enable": "logging.use_wandb",
    "wandb.entity": "logging.wandb_entity",
    "wandb.mode": "logging.wandb_mode",
    "wandb.project": "logging.wandb_project",
    "wandb_project": "logging.wandb_project",
    "warmup_steps": "scheduler.num_warmup_steps",
    "weight_decay": "optimizer.weight_decay",
}

# A switch -> the key that says more, and its value where the switch is on or off; None: nothing to say.
SWITCHES: dict[str, tuple[str, Any, Any]] = {
    "enable_profiling": ("profile_steps", 10, 0),
    "eval.save_rollouts": ("eval.recording_root", DEFAULT_RECORDING, None),
    "eval.save_videos": ("eval.max_episodes_rendered", 16, 0),
    "last_checkpoint_only": ("save_total_limit", 1, None),
    "policy.freeze_vision_encoder": ("policy.freeze", "vision", None),
    "policy.train_expert_only": ("policy.freeze", "expert_only", None),
}

WITHOUT_EFFECT = {
    "job_name": "exp_name names the run",
    "policy.response_max_length": "a value function answers no questions",
    "save_checkpoint": "checkpoints are always written",
    "trace_nans": "a step that is not finite ends the run",
    "use_policy_training_preset": "optimizer and scheduler have defaults",
}


def translate(given: Mapping[str, Any], known: Mapping[str, Any]) -> Translation:
    """Return dotted keys and values under today's keys; `known` are these with their defaults."""
    result = Translation()
    for old, value in given.items():
        if old in known:
            result.values[old] = value
    for old, value in given.items():
        if old in known:
            continue
        if old in WITHOUT_EFFECT:
            result.notices.append(f"{old}: without effect, {WITHOUT_EFFECT[old]}")
        elif RENAMED.get(old) in known:
            _add(result, old, RENAMED[old], value)
        elif old in SWITCHES and SWITCHES[old][0] in known:
            _switch(result, old, value)
        else:
            result.problems += unknown_key(old, value, known)
    result.problems += _dataset_problems(result.values.get("dataset_mixture.datasets"))
    return result


def _switch(result: Translation, old: str, value: Any) -> None:
    new, on, off = SWITCHES[old]
    if value not in (True, False):
        result.problems.append(f"{old}: expected true or false (or {new}), found {value!r}")
    elif new in result.values and value:
        result.notices.append(f"{old}: {new}={result.values[new]} says more")
    elif (meant := on if value else off) is not None:
        _add(result, old, new, meant)


def _add(result: Translation, old: str, new: str, value: Any) -> None:
    if new in result.values and result.values[new] != value:
        result.problems.append(f"{old}={value} contradicts {new}={result.values[new]}; keep one of them")
        return
    result.values[new] = value
    result.notices.append(f"{old} is {new} here: {new}={value}")


def _dataset_problems(datasets: Any) -> list[str]:
    """Return what is wrong with the keys of the entries of dataset_mixture.datasets."""
    known, problems = [one.name for one in fields(DatasetSettings)], []
    for number, entry in enumerate(datasets if isinstance(datasets, list) else []):
        for key in entry if isinstance(entry, Mapping) else ():
            try:
                did_you_mean("key", key, known)
            except ValueError as error:
                problems.append(f"dataset_mixture.datasets[{number}]: {error}")
    return problems

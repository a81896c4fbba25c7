"""Keys of earlier configuration files: what they are called now, and which ones have no effect."""

import difflib
import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

# Where several keys mean one, the first one here wins.
RENAMED = {
    "algo.demo_batch_size": "algo.data_batch_size",
    "algo.cfg_guidance_scale": "eval.cfg_guidance_scale",
    "algo.num_ppo_epochs": "algo.num_epochs",
    "benchmark_name": "task.benchmark_name",
    "checkpoint.keep_num": "training.keep_last",
    "checkpoint.save_interval": "training.save_freq",
    "data_parallel.enable_gradient_checkpointing": "policy.gradient_checkpointing",
    "data_processing.num_init_states": "dataset.num_init_states",
    "data_processing.window_stride": "dataset.window_stride",
    "distributed.gradient_checkpointing": "policy.gradient_checkpointing",
    "enhanced_sampling.max_sampling_attempts": "algo.max_sampling_attempts",
    "env": "task.benchmark_name",
    "env.benchmark_name": "task.benchmark_name",
    "evaluation.rollouts_per_task": "eval.rollouts_per_task",
    "fault_tolerance.checkpoint_interval": "training.save_freq",
    "fault_tolerance.max_checkpoints_to_keep": "training.keep_last",
    "features.enable_rollout_stats_tracking": "algo.enable_rollout_stats_tracking",
    "logging.mode": "logging.wandb_mode",
    "logging.project": "logging.wandb_project",
    "lr": "algo.lr",
    "norm_stats_path": "policy.norm_stats_path",
    "optimizer.lr": "algo.lr",
    "policy.replan_steps": "policy.n_action_steps",
    "rollout.n_video": "eval.n_video",
    "rollout.rollouts_per_env": "eval.rollouts_per_task",
    "task.task_names_to_use": "task.task_names",
    "training.gradient_checkpointing": "policy.gradient_checkpointing",
    "training.optimizer.lr": "algo.lr",
    "training_iterations": "training.num_train_steps",
    "unified_pool_batch_size": "algo.micro_batch_size",
}

BF16 = {"bf16": "bfloat16", "bfloat16": "bfloat16", "fp32": "float32", "float32": "float32"}
_NO_FP16 = "float16 is not offered, its range is too small for the loss; use policy.dtype=bfloat16"
_FIXED = "leave the key out"


@dataclass(frozen=True)
class Converted:
    """An old key whose values mean something; null and false ask for nothing."""

    key: str  # the new one
    values: Mapping[Any, Any]  # old value -> new value; None: it is what happens anyway
    remedy: str  # for other values


CONVERTED = {
    "policy.train_expert_only": Converted("policy.freeze", {True: "expert_only"}, "use true or false"),
    "policy.freeze_vision_encoder": Converted("policy.freeze", {True: "vision"}, "use true or false"),
    "training.precision": Converted("policy.dtype", BF16, _NO_FP16),
    "distributed.bf16": Converted("policy.dtype", {True: "bfloat16"}, "use true or false"),
    "distributed.fp16": Converted("policy.dtype", {}, _NO_FP16),
    "distributed.mixed_precision": Converted("policy.dtype", {True: "bfloat16", **BF16}, _NO_FP16),
    "training.use_mixed_precision": Converted("policy.dtype", {True: "bfloat16"}, _NO_FP16),
    "fault_tolerance.auto_resume": Converted("resume", {True: "auto"}, "use true or false"),
    "fault_tolerance.resume_from_latest": Converted("resume", {True: "auto"}, "use true or false"),
    "algo.baseline": Converted(
        "", {"rloo": None}, "the baseline is the mean of the other rollouts: " + _FIXED
    ),
    "algo.objective": Converted("", {"cfg": None}, "only 'cfg' is offered: " + _FIXED),
    "algo.use_val_init": Converted(
        "", {}, "training on the states of the evaluation would void it: " + _FIXED
    ),
    "distributed.use_fsdp": Converted("", {}, "every process holds the whole model (DDP): " + _FIXED),
}

WITHOUT_EFFECT = re.compile(
    r"algo\.(cfg_dropout|deterministic|early_stop_percentage|enable_dynamic_sampling|eval_only|ppo_clip_\w+"
    r"|rollout_stats_path|rollouts_per_env|skip_failed_states|state_history_window|temperature)"
    r"|checkpoint\.save_best"
    r"|data_parallel\.(async_data_loading|sync_every_n_steps)"
    r"|data_processing\.(max_windows_per_episode|state_dim|use_so100_processing|windowing_mode)"
    r"|dataset\.(_target_|frame_stack|get_pad_mask|load_\w+|max_samples_per_trajectory"
    r"|max_windows_per_episode|obs_seq_len|seq_len|state_dim|use_so100_processing|windowing_mode)"
    r"|distributed\.(bucket_cap_mb|enable_task_sharding|enabled|find_unused_parameters|sharded_ddp"
    r"|sync_every_n_steps|zero_optimization)"
    r"|enhanced_sampling\.(debug_sampling|enable_smart_filtering|save_videos|video_dir)"
    r"|env\.use_libero"
    r"|evaluation\.(detailed_logging|save_failure_videos|save_success_videos|save_videos)"
    r"|fault_tolerance\.enable_checkpointing"
    r"|logging\.(debug|group|log_dir|log_freq|log_gradients|log_interval|log_memory_usage|resume|save_code"
    r"|save_detailed_metrics|save_video)"
    r"|optimizer\.(lr_schedule|name|weight_decay)"
    r"|policy\.(cfg_enabled|train_state_proj)"
    r"|rollout\.(enabled|interval|max_episode_length|n_video_final|num_parallel_envs|steps)"
    r"|task\.(env_seed|local_tasks|num_steps_wait|rollouts_per_env|use_test)"
    r"|training\.(load_obs|log_interval|n_steps|optimizer\.(beta1|beta2|eps|momentum|type|weight_decay)"
    r"|rollout_steps|save_best|save_interval|save_optimizer_(final|freq))"
    r"|(adaptive_cfg|cfg_sweep|debug|defaults|features|performance|so100_monitoring|task_distribution"
    r"|train_dataloader)(\..*)?"
    r"|data_prefix|debug_sampling|libero_data_prefix|unified_pool_shuffle|use_libero_demos"
)


@dataclass
class Translation:
    """The settings under today's keys, what to tell the user, and what is wrong."""

    values: dict[str, Any] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def translate(settings: Mapping[str, Any], known: Mapping[str, Any]) -> Translation:
    """Return dotted keys and values under today's keys; `known` are these with their defaults."""
    result = Translation()
    sources: dict[str, list[str]] = defaultdict(list)
    values: dict[str, Any] = {}
    renamed, ignored = [], []
    order = ["algo.demo_batch_size", *known, *CONVERTED, "task.task_name", *RENAMED]
    for old in sorted(settings, key=lambda key: order.index(key) if key in order else len(order)):
        if _todays_key(old) in ("", *known):
            new, value = _todays_setting(old, settings[old], result.problems)
        elif WITHOUT_EFFECT.fullmatch(old):
            ignored.append(old)
            continue
        else:
            result.problems.extend(unknown_key(old, settings[old], known))
            continue
        if new and (old == new or value is not None or known[new] is None):
            renamed += [f"{old} -> {new}"] * (old != new)
            sources[new].append(old)
            values[old] = value
    for new, olds in sources.items():
        # An empty value gives way to a synonym.
        winner = next((old for old in olds if values[old] is not None), olds[0])
        result.values[new] = values[winner]
        losers = [old for old in olds if values[old] not in (None, values[winner])]
        result.notices += [f"{old}={values[old]} gives way to {winner}={values[winner]}" for old in losers]
    if renamed:
        result.notices.append(f"keys under their present names: {', '.join(renamed)}")
    if ignored:
        result.notices.append(f"keys without effect: {', '.join(sorted(ignored))}")
    return result


def _todays_key(old: str) -> str:
    """Return what a key is called now, "" for one that has no successor."""
    if old in CONVERTED:
        return CONVERTED[old].key
    return "task.task_names" if old == "task.task_name" else RENAMED.get(old, old)


def _todays_setting(old: str, value: Any, problems: list[str]) -> tuple[str, Any]:
    """Return key and value under today's name; no key if the old one asks for nothing or is wrong."""
    if old in CONVERTED:
        return _convert(old, value, problems)
    if old == "task.task_name" and value is not None:
        value = [value]
    return _todays_key(old), value


def _convert(old: str, value: Any, problems: list[str]) -> tuple[str, Any]:
    meaning = CONVERTED[old]
    if value is None or value == False:  # noqa: E712 - YAML words are equal to it
        return "", None
    if isinstance(value, Hashable) and value in meaning.values:
        return meaning.key, meaning.values[value]
    problems.append(f"{old}: found {value!r}; {meaning.remedy}")
    return "", None


def unknown_key(key: str, value: Any, known: Iterable[str]) -> list[str]:
    """Return what is wrong with a key that is not known; an empty section is fine."""
    inside = [name for name in known if name.startswith(f"{key}.")]
    if inside:
        expected = f"{key}: expected a section with keys such as {inside[0].removeprefix(f'{key}.')}"
        return [] if value is None else [f"{expected}, found {value!r}"]
    outside = next((name for name in known if key.startswith(f"{name}.")), None)
    if outside:
        found = f"the section {{{key.removeprefix(outside)[1:]}: ...}}"
        return [f"{outside}: expected a value, found {found}; a text with braces needs quotes"]
    section, _, last = key.rpartition(".")
    near = [name for name in known if name.rpartition(".")[2] == last]
    near += difflib.get_close_matches(key, known, n=3, cutoff=0.8)
    siblings = [name.removeprefix(f"{section}.") for name in known if name.rpartition(".")[0] == section]
    hints = [f"did you mean {' or '.join(map(repr, dict.fromkeys(near)))}?"] if near else []
    if section and siblings and not any(name.startswith(f"{section}.") for name in near):
        hints.append(f"{section} has: {', '.join(siblings)}")
    return [f"unknown key {key!r}; {' '.join(hints) or '--help lists the keys'}"]

"""What keys of other files are called here: those of earlier versions, of OpenTau, of GR00T.

One table for all commands: an entry counts where its new key is one of the command's, and its old one is not.
"""

import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pi0.ript.config.schema import NO_ENVIRONMENT
from pi0.ript.policy_settings import TOY


@dataclass(frozen=True)
class Alias:
    """Today's key for another one, and what the other's values mean."""

    key: str  # "" if nothing takes its place
    values: Mapping[Any, Any] | None = None
    """Its value -> today's; true and false mean themselves. None: every value stays as it is."""
    remedy: str | None = None
    """What to do about other values than these, null and false, which ask for nothing. None: they stay."""
    is_listed: bool = False
    """A single value here is a list there."""
    entry: str | None = None
    """Of a list of sections: the key of the one section that a single value here is there."""


def _table(text: str) -> dict[str, list[str]]:
    """Return the words behind the colon of each line, by what is before it; indented lines continue one."""
    entries = re.split(r"\n(?!    )", textwrap.dedent(text).strip())
    return {name: words.split() for name, _, words in (entry.partition(":") for entry in entries)}


def _renamed(text: str) -> dict[str, Alias]:
    """Return the aliases of a table: today's key, and other keys whose values mean the same."""
    return {old: Alias(key) for key, others in _table(text).items() for old in others}


_SWITCH = "use true or false"
_NO_FP16 = "float16 is not offered, its range is too small for the loss; use policy.dtype=bfloat16"
_FIXED = "leave the key out"
_ADAM = Alias(
    "algo.weight_decay",
    {"AdamW": None, "adamw": None, "Adam": 0.0},
    "use AdamW, or Adam, which is AdamW without weight decay",
)
_WINDOWS = Alias("dataset.max_windows_per_episode", {"last": 1, "slide": None}, "use last or slide")
_BF16 = {"bf16": "bfloat16", "bfloat16": "bfloat16", "fp32": "float32", "float32": "float32"}
DEFAULT_RECORDING = "data/rollouts"
"""Where rollouts are kept that a file asks to be kept, and does not say where."""

# Of earlier versions. Where several keys of a file mean one, the first one here wins.
EARLIER: dict[str, Alias] = {
    "policy.train_expert_only": Alias("policy.freeze", {True: "expert_only"}, _SWITCH),
    "policy.freeze_vision_encoder": Alias("policy.freeze", {True: "vision"}, _SWITCH),
    "training.precision": Alias("policy.dtype", _BF16, _NO_FP16),
    "distributed.bf16": Alias("policy.dtype", {True: "bfloat16"}, _SWITCH),
    "distributed.fp16": Alias("policy.dtype", {}, _NO_FP16),
    "distributed.mixed_precision": Alias("policy.dtype", {True: "bfloat16", **_BF16}, _NO_FP16),
    "training.use_mixed_precision": Alias("policy.dtype", {True: "bfloat16"}, _NO_FP16),
    "fault_tolerance.auto_resume": Alias("resume", {True: "auto"}, _SWITCH),
    "fault_tolerance.resume_from_latest": Alias("resume", {True: "auto"}, _SWITCH),
    "algo.baseline": Alias("", {"rloo": None}, f"the baseline is the mean of the other rollouts: {_FIXED}"),
    "algo.objective": Alias("", {"cfg": None}, f"only 'cfg' is offered: {_FIXED}"),
    "algo.use_val_init": Alias("", {}, f"training on the states of the evaluation would void it: {_FIXED}"),
    "distributed.use_fsdp": Alias("distributed.strategy", {True: "fsdp"}, _SWITCH),
    "task.task_name": Alias("task.task_names", is_listed=True),
    "dataset.windowing_mode": _WINDOWS,
    "data_processing.windowing_mode": _WINDOWS,
    **_renamed("""
        algo.data_batch_size: algo.demo_batch_size
        gates.min_concordance: gates.min_separation
        eval.cfg_guidance_scale: algo.cfg_guidance_scale
        algo.num_epochs: algo.num_ppo_epochs
        task.benchmark_name: benchmark_name env env.benchmark_name
        training.keep_last: checkpoint.keep_num fault_tolerance.max_checkpoints_to_keep
        training.save_freq: checkpoint.save_interval fault_tolerance.checkpoint_interval
        policy.gradient_checkpointing: data_parallel.enable_gradient_checkpointing
            distributed.gradient_checkpointing training.gradient_checkpointing
        dataset.num_init_states: data_processing.num_init_states
        dataset.window_stride: data_processing.window_stride
        dataset.max_windows_per_episode: data_processing.max_windows_per_episode
            dataset.max_samples_per_trajectory
        algo.max_sampling_attempts: enhanced_sampling.max_sampling_attempts
        eval.rollouts_per_task: evaluation.rollouts_per_task rollout.rollouts_per_env
        algo.enable_rollout_stats_tracking: features.enable_rollout_stats_tracking
        logging.wandb_mode: logging.mode
        logging.wandb_project: logging.project
        algo.lr: lr optimizer.lr training.optimizer.lr
        algo.beta1: training.optimizer.beta1
        algo.beta2: training.optimizer.beta2
        policy.statistics_path: norm_stats_path policy.norm_stats_path
        policy.n_action_steps: policy.replan_steps
        eval.n_video: rollout.n_video
        task.task_names: task.task_names_to_use
        training.num_train_steps: training_iterations
        algo.micro_batch_size: unified_pool_batch_size
    """),
}

# Of OpenTau and GR00T, and of pi0-train and pi0-eval before they had the sections of the other commands.
# Where keys of a file mean one and differ, that is an error.
OTHERS: dict[str, Alias] = {
    "base_model_path": Alias("policy_path", {None: TOY}),
    "policy.pretrained_path": Alias("policy_path", {None: TOY}),
    "start_from_checkpoint": Alias("policy_path", {None: TOY}),
    "env.type": Alias("task.benchmark_name", {None: NO_ENVIRONMENT}),
    "env.suite": Alias("task.benchmark_name", {None: NO_ENVIRONMENT}),
    "env.task": Alias("task.task_names", is_listed=True),
    "dataset_path": Alias("dataset_mixture.datasets", is_listed=True, entry="root"),
    "num_gpus": Alias("", {1: None}, "each GPU has a process: pi0-train --nproc-per-node N"),
    "optimizer.name": _ADAM,
    "training.optimizer.type": _ADAM,
    "optimizer.lr_schedule": Alias("", {"linear": None}, f"algo.lr falls linearly in an iteration: {_FIXED}"),
    "training.optimizer.eps": Alias("", {1e-8: None}, f"AdamW's epsilon is 1e-8: {_FIXED}"),
    "policy.type": Alias("", {"pi0": None}, "expected pi0, which can act"),
    "enable_profiling": Alias("profile_steps", {True: 10, False: 0}, f"{_SWITCH}, or profile_steps"),
    "eval.save_rollouts": Alias(
        "eval.recording_root", {True: DEFAULT_RECORDING, False: None}, f"{_SWITCH}, or a directory"
    ),
    "eval.save_videos": Alias("eval.n_video", {True: 16, False: 0}, f"{_SWITCH}, or eval.n_video"),
    "last_checkpoint_only": Alias("save_total_limit", {True: 1}, f"{_SWITCH}, or save_total_limit"),
    **_renamed("""
        policy.chunk_size: action_chunk
        dataset_mixture.num_workers: dataloader_num_workers num_workers
        dataset_mixture.cache_gib: dataset_mixture.in_memory_gib
        cache_gib: dataset_mixture.cache_gib in_memory_gib
        task.camera_names: env.camera_names
        task.max_episode_length: env.episode_length
        task.image_size: env.image_size
        task.num_parallel_envs: env.num_envs eval.batch_size
        task.render_size: env.render_size
        task.task_names: env.task_ids
        eval.cfg_guidance_scale: eval.guidance
        eval.n_video: eval.max_episodes_rendered
        eval.rollouts_per_task: eval.n_episodes eval.num_episodes
        task.num_workers: eval.num_workers
        exp_name: experiment_name
        batch_size: global_batch_size
        optimizer.learning_rate: learning_rate optimizer.lr scheduler.peak_lr
        log_freq: logging_steps
        policy.embodiment: embodiment_tag
        policy.max_action_dim: max_action_dim
        policy.max_state_dim: max_state_dim
        steps: max_steps
        policy.reads: policy.policy_path
        policy.tokenizer_max_length: policy.prompt_max_length
        dataset_mixture.prefetch_factor: prefetch_factor
        save_freq: save_steps
        optimizer.grad_norm_clip: optimizer.grad_clip_norm
        optimizer.indicator_learning_rate: optimizer.indicator_lr
        logging.use_wandb: use_wandb wandb.enable
        logging.wandb_entity: wandb.entity
        logging.wandb_mode: wandb.mode
        logging.wandb_project: wandb.project wandb_project
        scheduler.num_warmup_steps: warmup_steps
        optimizer.weight_decay: weight_decay
        algo.weight_decay: optimizer.weight_decay training.optimizer.weight_decay
    """),
}

WITHOUT_EFFECT = _table("""
of PPO, and RIPT makes one update per mini-batch:
    algo.ppo_clip_* algo.early_stop_percentage
states and groups are drawn in one fixed order:
    algo.enable_dynamic_sampling algo.rollout_stats_path algo.skip_failed_states algo.state_history_window
    enhanced_sampling.debug_sampling debug_sampling enhanced_sampling.enable_smart_filtering
    unified_pool_shuffle
values are judged by gates.min_concordance:
    gates.min_correlation
actions are always sampled:
    algo.deterministic algo.temperature
the indicator is withheld by algo.cfg_uncond_weight:
    algo.cfg_dropout policy.cfg_enabled
guidance is constant:
    adaptive_cfg adaptive_cfg.* cfg_sweep cfg_sweep.*
of SGD, and the optimizer is AdamW:
    training.optimizer.momentum
task and eval say what is simulated:
    algo.eval_only algo.rollouts_per_env env.use_libero task.env_seed task.local_tasks task.num_steps_wait
    task.rollouts_per_env task.use_test training.rollout_steps rollout.enabled rollout.interval
    rollout.max_episode_length rollout.n_video_final rollout.num_parallel_envs rollout.steps
checkpoints, videos and logs are always written to the run's directory:
    checkpoint.save_best enhanced_sampling.save_videos enhanced_sampling.video_dir
    evaluation.detailed_logging evaluation.save_*videos fault_tolerance.enable_checkpointing logging.debug
    logging.group logging.log_* logging.resume logging.save_* training.log_interval training.save_best
    training.save_interval training.save_optimizer_final training.save_optimizer_freq save_checkpoint
windows are those of whole episodes, every dataset.window_stride steps:
    data_processing.state_dim data_processing.use_so100_processing dataset.state_dim
    dataset.use_so100_processing dataset._target_ dataset.frame_stack
    dataset.get_pad_mask dataset.load_* dataset.obs_seq_len dataset.seq_len training.load_obs
    training.n_steps train_dataloader train_dataloader.* data_prefix libero_data_prefix use_libero_demos
processes share the work by themselves:
    data_parallel.async_data_loading data_parallel.sync_every_n_steps distributed.bucket_cap_mb
    distributed.enable_task_sharding distributed.enabled distributed.find_unused_parameters
    distributed.sharded_ddp distributed.sync_every_n_steps distributed.zero_optimization task_distribution
    task_distribution.*
policy.freeze says what is trained:
    policy.train_state_proj
belongs to another program:
    debug debug.* defaults defaults.* features features.* performance performance.* so100_monitoring
    so100_monitoring.*
exp_name names the run:
    job_name
a data set says what its columns are; data_features_name_mapping renames them:
    modality_config_path num_cams
a run is one in W&B, by exp_name:
    wandb.disable_artifact wandb.group wandb.job_type wandb.name wandb.notes wandb.on_resume wandb.run_id
    wandb.tags
a value function answers no questions:
    policy.response_max_length
steps that are not finite are skipped and counted:
    trace_nans
optimizer and scheduler have defaults:
    use_policy_training_preset
""")
"""Keys that are read and not used, by the reason; `*` stands for any letters."""

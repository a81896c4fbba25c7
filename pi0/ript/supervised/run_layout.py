"""The directory of a supervised run (requirement 002): settings, processor, W&B's id, the final model.

<output_dir>/<exp_name>/                   exp_name: <time>_<type> where the settings name none
  experiment_cfg/config.yaml, conf.yaml    all settings; the same with GR00T's names for some
  processor/statistics.json, processor_config.json
  wandb_config.json, metrics.jsonl, train_rank0.log, profiling/
  checkpoint-{step}/, checkpoint-{step}-best-{metric}_{value}/
  checkpoints/{step}                       a link to each checkpoint-{step}: requirement 004's name
  config.json, model.safetensors, ...      the final model
"""

import shutil
import time
from dataclasses import asdict
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from pi0 import PI0Policy
from pi0.checkpoint_names import WEIGHTS
from pi0.embodiment import plain_statistics, write_ids
from pi0.ript.checkpoint.files import published
from pi0.ript.checkpoint.launch import Launch
from pi0.ript.checkpoint.resuming import Advice, find_same_run
from pi0.ript.config import ConfigError, save_config
from pi0.ript.config.loading import present_settings
from pi0.ript.data.frame_set import FrameSet
from pi0.ript.data.settings import mixture_weights
from pi0.ript.data.statistics import FILE_NAME, save_statistics
from pi0.ript.files import write_json
from pi0.ript.labels.settings import RewardConfig
from pi0.ript.policy_settings import TOY
from pi0.ript.results import lock_directory, new_run_directory
from pi0.ript.supervised.settings import SupervisedSettings
from pi0.ript.training.objectives import Model

REWARD_FILE = "reward.json"
"""Beside a value function: the reward whose returns it foretells; `pi0-advantage` reads it."""

DESCRIPTIONS = ("experiment_cfg", "processor", "wandb_config.json", REWARD_FILE)
"""Files and directories of a run that each of its checkpoints has a copy of."""

_WANDB_FILE = "wandb_config.json"
ADVICE = Advice(
    resume="start the same command again with --resume",
    anew="choose another exp_name for a new run, or begin this one again with --overwrite",
    weights="those that policy_path or policy.reads names",
)


def open_run(config: SupervisedSettings, launch: Launch | None = None) -> tuple[Path, Path | None]:
    """Return the run's directory, from now on this process's own, and the checkpoint to continue from.

    What `overwrite` moves aside is still there. A run that the launch, a call of torchrun, has begun goes on.

    Raises:
        RunInUseError: A live process has the directory.
        ConfigError: It holds something else than a run, or there is none to go on with.
        ChangedSettingsError: The run there was made with settings that have another result.
        SnapshotError: None of its checkpoints is valid.
    """
    path = _place(config, launch)
    is_run = (path / "experiment_cfg/config.yaml").exists()
    is_empty = not path.exists() or all(file.name == ".lock" for file in path.iterdir())
    if not is_empty and not is_run and not config.overwrite:
        raise ConfigError(
            f"{path}: expected a run of pi0-train or no such directory, found other files; choose "
            "another output_dir or exp_name (--overwrite moves what is there aside)"
        )
    lock_directory(path)
    if not is_run or (config.overwrite and not _has_begun(launch, path)):
        return path, None
    return path, find_same_run(
        path, config, advice=ADVICE, read=partial(present_settings, schema=type(config))
    )


def begin_again(run_dir: Path, launch: Launch | None) -> None:
    """Move an earlier run aside, unless the launch began it, which torchrun has started again since."""
    if not _has_begun(launch, run_dir):
        new_run_directory(run_dir)


def _has_begun(launch: Launch | None, run_dir: Path) -> bool:
    return launch is not None and launch.has_begun(run_dir)


def _place(config: SupervisedSettings, launch: Launch | None) -> Path:
    """Return the directory of a run: as it is named, the newest of its type or launch, or a new one."""
    parent, kind = Path(config.output_dir).expanduser(), config.policy.type
    if config.exp_name is not None:
        return parent / config.exp_name
    begun = [path for path in parent.glob(f"*_{kind}") if _has_begun(launch, path)]
    if begun:
        return max(begun)
    if not config.resume:
        while (path := parent / f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{kind}").exists():
            time.sleep(0.1)
        return path
    runs = sorted(file.parents[1] for file in parent.glob(f"*_{kind}/experiment_cfg/config.yaml"))
    if not runs:
        raise ConfigError(f"resume: expected a run TIME_{kind} in {parent}, found none; leave --resume out")
    return runs[-1]


def link_checkpoints(run_dir: Path) -> None:
    """Make checkpoints/{step} a link to each checkpoint-{step}, and to nothing else."""
    links = run_dir / "checkpoints"
    links.mkdir(exist_ok=True)
    there = {path.name.removeprefix("checkpoint-"): path.name for path in published(run_dir)}
    for link in set(links.iterdir()) - {links / step for step in there}:
        link.unlink()
    for step, name in there.items():
        if not (links / step).is_symlink():
            (links / step).symlink_to(Path("..") / name)


def write_settings(
    run_dir: Path, config: SupervisedSettings, world_size: int, launch: Launch | None = None
) -> None:
    """Write experiment_cfg/ and wandb_config.json, and which launch of torchrun the run is of."""
    save_config(config, run_dir)
    if launch is not None:
        launch.note(run_dir)
    values = asdict(config)
    more = {
        "max_steps": config.steps,
        "save_steps": config.save_freq,
        "logging_steps": config.log_freq,
        "global_batch_size": config.batch_size,
        "num_processes": world_size,
    }
    conf = OmegaConf.to_yaml(OmegaConf.create({**values, **more}))
    (run_dir / "experiment_cfg/conf.yaml").write_text(conf, encoding="utf-8")
    if not (run_dir / _WANDB_FILE).exists():
        target = {"project": config.logging.wandb_project, "entity": config.logging.wandb_entity}
        write_json(run_dir / _WANDB_FILE, {**target, "run_id": None, "last_step": -1})


def write_processor(
    run_dir: Path,
    model: Model,
    sets: list[FrameSet],
    config: SupervisedSettings,
    reward: RewardConfig | None,
) -> None:
    """Write processor/: how raw data become the model's input, and the numbers for it; and reward.json."""
    features = model.features
    made_from = {
        "datasets": [frames.name for frames in sets],
        "weights": mixture_weights(config.dataset_mixture),
        "relative_actions": list(features.relative_actions),
        "from": "data" if TOY in (config.policy_path, config.policy.statistics) else config.policy_path,
    }
    robots = model.embodiments.known() if isinstance(model, PI0Policy) else {}
    (run_dir / "processor").mkdir(exist_ok=True)
    if robots:
        write_ids(run_dir / "processor", list(robots))
        by_tag = {tag: plain_statistics(robot.statistics) for tag, robot in robots.items()}
        write_json(run_dir / FILE_NAME, {"statistics": by_tag, "made_from": made_from})
    else:
        save_statistics(run_dir / FILE_NAME, model.statistics, made_from)
    described: dict[str, Any] = {
        "features": features.to_dict(),
        "tokenizer": model.tokenizer.name,
        "n_obs_steps": config.policy.n_obs_steps,
    }
    if robots:
        described["embodiments"] = {tag: robot.features.to_dict() for tag, robot in robots.items()}
    if isinstance(model, PI0Policy):
        described |= {
            "image_size": model.config.vision.image_size,
            "chunk_size": model.config.chunk_size,
            "action_freq": config.dataset_mixture.action_freq or sorted({frames.fps for frames in sets}),
        }
    write_json(run_dir / "processor/processor_config.json", described)
    if reward is not None:
        write_json(run_dir / REWARD_FILE, asdict(reward))


def copy_descriptions(run_dir: Path, target: Path) -> None:
    """Copy what a checkpoint keeps of its run."""
    for name in DESCRIPTIONS:
        source = run_dir / name
        if source.is_dir():
            shutil.copytree(source, target / name)
        elif source.exists():
            shutil.copy2(source, target / name)


def publish_model(run_dir: Path, model: Model) -> None:
    """Write the final model into the run's directory; whoever reads it meanwhile sees no half of it."""
    partial = run_dir / ".model.partial"
    if partial.exists():
        shutil.rmtree(partial)
    try:
        model.save_pretrained(partial)
    except OSError:
        shutil.rmtree(partial)
        raise
    files = sorted(file for file in partial.rglob("*") if file.is_file())
    for file in sorted(files, key=lambda file: file.name == WEIGHTS):  # the weights last
        target = run_dir / file.relative_to(partial)
        target.parent.mkdir(exist_ok=True)
        file.replace(target)
    shutil.rmtree(partial)

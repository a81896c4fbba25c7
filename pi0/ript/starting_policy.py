"""The policy that training starts from: a checkpoint, or a toy trained here on demonstrations."""

import re
from pathlib import Path
from typing import Any

import torch

from pi0 import FeatureConfig, PI0Policy
from pi0.config import IndicatorMode
from pi0.openpi_format import read_statistics
from pi0.pretrained import WEIGHTS
from pi0.registry import get_config
from pi0.ript.environments import Environment
from pi0.ript.envs import Task
from pi0.ript.warm_start import warm_start

TOY = "toy"


def starting_policy(
    path: str,
    environment: Environment,
    cache: str | Path,
    seed: int,
    device: str = "cpu",
    *,
    config: str | None = None,
    freeze: str | None = "none",
    dtype: str | None = None,
    gradient_checkpointing: bool = False,
    n_action_steps: int | None = None,
    indicator: IndicatorMode = "embedding",
    extra_delta_transform: bool | None = None,
    norm_stats_path: str | None = None,
) -> PI0Policy:
    """Return the policy, with an indicator of the advantage that changes nothing before it is trained.

    Args:
        path: "toy", or a checkpoint that `PI0Policy.from_pretrained` reads.
        environment: Whose demonstrations the toy imitates.
        cache: Directory of demonstrations and toy policies, which are made once.
        seed: Of demonstrations and toy policy.
        device: "cpu", "cuda", "cuda:1", ..., or "auto" for a GPU if there is one.
        config: Name of a registered configuration that replaces the checkpoint's; its weight loader says
            which weights may be new.
        freeze: What is not trained; see `pi0.trainable.FREEZE_CHOICES`. None: as the configuration says.
        dtype: Of computation; the weights that are trained stay float32. None: as the checkpoint says.
        gradient_checkpointing: Recompute each block in the backward pass: less memory, more time.
        n_action_steps: Actions of a chunk that are executed; None: as the checkpoint says.
        indicator: How the advantage enters a checkpoint's policy.
        extra_delta_transform: What openpi's LIBERO checkpoints leave open; see `pi0.pretrained.load`.
        norm_stats_path: An openpi norm_stats.json in place of the checkpoint's statistics.

    Raises:
        ValueError: The device is missing, or nothing is at the path, with the remedy.
    """
    where = require_device(device)
    changes: dict[str, Any] = {"indicator": indicator, "indicator_dropout": 0.0}
    changes |= {"dtype": dtype} if dtype else {}
    changes |= {"gradient_checkpointing": True} if gradient_checkpointing else {}
    changes |= {"n_action_steps": n_action_steps} if n_action_steps else {}
    require_policy_path(path)
    if path == TOY:
        policy = warm_start(environment.warm_start_spec(seed), Path(cache), **changes)
    else:
        policy = PI0Policy.from_pretrained(
            Path(path).expanduser(),
            config=get_config(config) if config else None,
            changes=changes,
            statistics=read_statistics(Path(norm_stats_path).expanduser()) if norm_stats_path else None,
            extra_delta_transform=extra_delta_transform,
            device=where,
            seed=seed,
        )
    require_fits(policy.features, environment)
    policy.model.freeze(freeze)
    return policy.to(where)


def task_features(task: Task) -> dict[str, dict[str, Any]]:
    """Return what a task's observations and actions are, in the form of `LeRobotDataset.meta.features`."""
    shape = (task.image_size, task.image_size, 3)
    return {
        **{f"observation.images.{camera}": {"shape": shape, "dtype": "uint8"} for camera in task.cameras},
        "observation.state": {"shape": (task.state_dim,), "dtype": "float32"},
        "action": {"shape": (task.action_dim,), "dtype": "float32"},
    }


def require_fits(
    features: FeatureConfig, environment: Environment, names_key: str = "task.camera_names"
) -> None:
    """Raise ValueError unless the environment shows and takes what a policy of these features does.

    `names_key` is the setting of the cameras' names, as the caller's users know it.
    """
    expected = [key.removeprefix("observation.images.") for key in features.present_cameras]
    task = environment.suite().tasks()[0]
    if not set(expected) <= set(task.cameras):
        raise ValueError(
            f"camera_names: the policy takes {expected}, the environment shows {list(task.cameras)}; "
            f"rename the environment's with {names_key}, third-person view first"
        )
    for task in environment.suite().select(environment.tasks):
        features.require_inputs(task_features(task), f"environment {task.id}")


def require_policy_path(path: str, field: str = "policy_path") -> None:
    """Raise ValueError with the field unless it is "toy", a checkpoint directory or a possible hub name."""
    remedy = (
        "expected a pi0 checkpoint directory (of lerobot or openpi, with config.json and model.safetensors), "
        "the name of a hub repository, or 'toy' for a small policy that is trained here on demonstrations"
    )
    place = Path(path).expanduser()
    if path == TOY:
        return
    if re.search(r"[{}<>]", path):
        raise ValueError(f"{field}: nobody filled in the placeholder {path!r}; {remedy}")
    if place.is_dir():
        missing = [name for name in ("config.json", WEIGHTS) if not (place / name).exists()]
        if missing:
            raise ValueError(f"{field}: {path!r} has no {' and no '.join(missing)}; {remedy}")
    elif not re.fullmatch(r"\w[\w.-]*/[\w.-]+", path):
        raise ValueError(f"{field}: nothing at {path!r}; {remedy}")


def require_device(name: str) -> torch.device:
    """Return the device of a name; "auto" is a GPU if there is one. A missing one is a ValueError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise ValueError(f"device: expected cpu, cuda, cuda:1, ... or auto, found {name!r}")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device: {name!r} is not there, found {torch.cuda.device_count()} CUDA devices; "
            "use device=cpu, or device=auto"
        )
    return device

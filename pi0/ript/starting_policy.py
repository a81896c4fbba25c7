"""The policy that training starts from: a checkpoint, or a toy trained here on demonstrations."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pi0 import FeatureConfig, Pi0Model, PI0Policy
from pi0.config import Pi0Config
from pi0.embodiment import require_chosen
from pi0.errors import UnusableError
from pi0.pretrained import Checkpoint, describe, resolve
from pi0.registry import get_config
from pi0.ript.environments import Environment
from pi0.ript.envs import Task
from pi0.ript.kept_prefixes import keep_prefixes
from pi0.ript.policy_settings import TOY, PolicySettings, require_device_name, require_policy_path
from pi0.ript.threads import use_threads
from pi0.ript.warm_start import warm_start
from pi0.statistics_file import read_statistics_file
from pi0.trainable import inference_dtypes, training_dtypes

_later: ContextVar[bool] = ContextVar("later", default=False)


@contextmanager
def weights_later(later: bool = True) -> Iterator[None]:
    """Have `make_policy` leave the weights of what is trained in their files; see `pi0.pretrained.load`."""
    token = _later.set(later)
    try:
        yield
    finally:
        _later.reset(token)


def starting_policy(
    path: str, environment: Environment, cache: str | Path, seed: int, device: str = "cpu", **settings: Any
) -> PI0Policy:
    """Return the policy, with an indicator of the advantage that changes nothing before it is trained.

    Args:
        path: "toy", or a checkpoint that `PI0Policy.from_pretrained` reads.
        environment: The environment whose demonstrations the toy imitates.
        cache: Directory of demonstrations and toy policies, which are made once.
        seed: The seed of demonstrations and toy policy.
        device: "cpu", "cuda", "cuda:1", ..., or "auto" for a GPU if there is one.
        settings: Fields of `PolicySettings`.

    Raises:
        ValueError: The device is missing, or nothing is at the path, with the remedy.
    """

    def toy(**changes: Any) -> PI0Policy:
        return warm_start(environment.warm_start_spec(seed), Path(cache), **changes)

    changes = {"indicator": "embedding"}
    policy = make_policy(path, PolicySettings(**settings), toy, seed, device, changes=changes)
    require_fits(policy.features, environment)
    is_first = os.environ.get("RANK", "0") == "0"
    keep_prefixes(policy, PolicySettings(**settings), print if is_first else lambda _: None)
    return policy


def make_policy(
    path: str,
    settings: PolicySettings,
    toy: Callable[..., PI0Policy],
    seed: int,
    device: str = "cpu",
    *,
    changes: Mapping[str, Any] | None = None,
    only_acts: bool = False,
    **replaced: Any,
) -> PI0Policy:
    """Return a policy to train: the one maker of the ladder, of RECAP, of pi0-train and of pi0-eval.

    Torch computes with the threads that suit it from then on.

    Args:
        path: "toy", or a checkpoint that `PI0Policy.from_pretrained` reads.
        settings: What changes in it.
        toy: Returns the toy, given fields of its configuration.
        seed: The seed of the weights that a checkpoint lacks.
        device: "cpu", "cuda", "cuda:1", ..., or "auto" for a GPU if there is one.
        changes: More fields of its configuration, such as how the advantage enters.
        only_acts: It will not be trained, so its large weights are held in the dtype of its computation.
        replaced: `features`, `statistics` and `embodiment` in place of a checkpoint's or of the settings', as
            in `pi0.pretrained.load`.

    Raises:
        ValueError: The device is missing, or nothing is at the path, with the remedy.
    """
    place = require_device(device)
    require_policy_path(path)
    fields = {"indicator_dropout": 0.0, **settings.changes(), **(changes or {})}
    if path == TOY:
        policy = toy(**fields)
    else:
        file = None
        if settings.statistics_path:
            file = read_statistics_file(Path(settings.statistics_path).expanduser())
            replaced["statistics"] = file.statistics
        policy = PI0Policy.from_pretrained(
            Path(path).expanduser(),
            config=get_config(settings.config) if settings.config else None,
            changes=fields,
            extra_delta_transform=None if replaced.get("features") else settings.extra_delta_transform,
            dtypes=_acting if only_acts else partial(_trained, settings),
            later=_later.get() and not only_acts,
            device=place,
            seed=seed,
            **{"embodiment": settings.embodiment, **replaced},
        )
        if file is not None:
            file.require_relative_actions(policy.features.relative_actions)
    use_threads(policy, settings.threads)
    if not only_acts:
        policy.model.freeze(settings.freeze, settings.frozen_dtype)
    return policy if policy.model.later else policy.to(place)


def _trained(settings: PolicySettings, model: Pi0Model) -> dict[str, torch.dtype]:
    which = model.config.freeze_filter() if settings.freeze is None else settings.freeze
    return training_dtypes(model, model.dtype, which, settings.frozen_dtype)


def _acting(model: Pi0Model) -> dict[str, torch.dtype]:
    return inference_dtypes(model, model.dtype)


def task_features(task: Task) -> dict[str, dict[str, Any]]:
    """Return what a task's observations and actions are, in the form of `LeRobotDataset.meta.features`."""
    shape = (task.image_size, task.image_size, 3)
    return {
        **{f"observation.images.{camera}": {"shape": shape, "dtype": "uint8"} for camera in task.cameras},
        "observation.state": {"shape": (task.state_dim,), "dtype": "float32"},
        "action": {"shape": (task.action_dim,), "dtype": "float32"},
    }


def require_fits(features: FeatureConfig, environment: Environment) -> None:
    """Raise ValueError unless the environment shows and takes what a policy of these features does."""
    expected = [key.removeprefix("observation.images.") for key in features.present_cameras]
    suite = environment.suite()
    shown = list(suite.tasks()[0].cameras)
    if not set(expected) <= set(shown):
        is_of_names = len(expected) <= len(shown) and hasattr(suite, "camera_names")
        remedy = (
            "rename the environment's with task.camera_names, third-person view first"
            if is_of_names
            else "train the policy on data of these cameras first, as pi0-train does where "
            "data_features_name_mapping says null for a camera that the data lack"
        )
        raise UnusableError(f"cameras: the policy takes {expected}, the environment shows {shown}; {remedy}")
    for task in suite.select(environment.tasks):
        try:
            features.require_inputs(task_features(task), f"environment {task.id}")
        except UnusableError as error:
            raise UnusableError(
                f"{error}; it is of another robot, or a base: take one that was trained on this "
                "environment's data, or train it there first (pi0-train)"
            ) from error


def require_acts(policy: PI0Policy, environment: Environment) -> None:
    """Raise ValueError unless the policy fits the environment and can read the instructions of its tasks."""
    require_fits(policy.features, environment)
    instructions = [task.instruction for task in environment.suite().select(environment.tasks)]
    config = policy.config
    policy.tokenizer.encode(instructions, config.tokenizer_max_length, config.vocab_size)


def require_robot(path: str | Path, embodiment: str | None, config: Pi0Config | None = None) -> Checkpoint:
    """Return what a checkpoint says of the robot that its policy is to act as; no weights are read.

    Raises:
        EmbodimentError: It does not know the robot, or knows several and none is chosen.
    """
    described = describe(resolve(path), config, None, None, None, embodiment)
    require_chosen(list(described.embodiments), described.embodiment)
    return described


def require_device(name: str) -> torch.device:
    """Return the device of a name; "auto" is a GPU if there is one. A missing one is a ValueError."""
    require_device_name(name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UnusableError(
            f"device: {name!r} is not there, found {torch.cuda.device_count()} CUDA devices; "
            "use device=cpu, or device=auto"
        )
    return device

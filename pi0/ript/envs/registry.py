"""Environments by name: the ones that come with the package, and the ones that others add."""

import importlib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from pi0.registry import add, did_you_mean
from pi0.ript.envs.base import TaskSuite
from pi0.ript.envs.batched import BatchedEnv

_SUITES: dict[str, str | Callable[..., TaskSuite]] = {
    "metaworld": "pi0.ript.envs.metaworld_suite:MetaWorldSuite",
    "libero": "pi0.ript.envs.libero_suite:LiberoSuite",
}


def register_env(name: str, suite: str | Callable[..., TaskSuite]) -> None:
    """Make `make_env(name, ...)` use a suite, and `task.benchmark_name=name` too.

    Args:
        name: A name that is not taken.
        suite: A `TaskSuite` class (or factory), or "module:attribute", imported on first use.
            The class must be importable, since worker processes unpickle it.
    """
    add("environment", _SUITES, name, suite)


def suite_names() -> tuple[str, ...]:
    """Return the names of all environments."""
    return tuple(_SUITES)


def make_suite(name: str, **options: Any) -> TaskSuite:
    """Return a suite by name, made with its own options (`render_quality=...` and so on).

    Raises:
        ValueError: The name or an option is unknown; the message suggests known ones.
    """
    entry = _SUITES[did_you_mean("environment", name, _SUITES)]
    if isinstance(entry, str):
        module, attribute = entry.split(":")
        entry = getattr(importlib.import_module(module), attribute)
    parameters = inspect.signature(entry).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for option in options:
            did_you_mean(f"option of environment {name!r}:", option, parameters)
    return entry(**options)


def make_env(
    name: str,
    tasks: Iterable[str] | None = None,
    *,
    num_slots: int = 1,
    num_workers: int = 0,
    max_steps: int | None = None,
    timeout: float = 120.0,
    **options: Any,
) -> BatchedEnv:
    """Return a batched environment of a registered suite; see `BatchedEnv` for the arguments.

    `make_env("metaworld", "button-press-v3", num_slots=32)`,
    `make_env("libero", suite="libero_object", num_slots=8, num_workers=8)`.
    """
    return BatchedEnv(
        make_suite(name, **options),
        tasks,
        num_slots=num_slots,
        num_workers=num_workers,
        max_steps=max_steps,
        timeout=timeout,
    )

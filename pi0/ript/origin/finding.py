"""Finds the run that a policy lies in, and what it and the runs before it say."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from pi0.checkpoint_names import HUB_NAME
from pi0.errors import UnusableError
from pi0.ript.files import read_versioned_json
from pi0.ript.origin.recap import is_recap_policy, read_recap_policy
from pi0.ript.origin.record import Origin, shown_path, starting_path
from pi0.ript.origin.ript import is_ladder_policy, read_ladder_policy
from pi0.ript.origin.supervised import is_trained_policy, read_trained_policy
from pi0.ript.policy_settings import TOY

_Reader = Callable[[Path, str, Mapping[str, Any]], Origin]


def read_origin(checkpoint: str | Path, before: tuple[Path, ...] = ()) -> Origin:
    """Return what is known of a policy in a directory or a hub repository.

    Args:
        checkpoint: Where it is.
        before: Directories of policies that come from it: it cannot come from these.

    Raises:
        UnusableError: A file of its run is damaged, or a later version wrote it.
    """
    path = Path(checkpoint).expanduser()
    if not path.is_dir():
        return _outside_of_runs(str(checkpoint), hub_name(str(checkpoint)))
    path = path.resolve()
    found = None if path in before else _find_run(path)
    if found is None:
        return _outside_of_runs(shown_path(str(checkpoint)), str(path))
    run, place, settings, reader = found
    try:
        origin = reader(run, place, settings)
        settings = origin.settings or settings
        start = _start(starting_path(settings), (*before, path))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, UnusableError):
            raise
        raise UnusableError(
            f"{run}: its files do not say what those of a run do ({type(error).__name__}: {error}); copy the "
            "policy's directory elsewhere to export it without the run"
        ) from error
    return replace(
        origin,
        run=run,
        settings=settings,
        lineage=(*origin.lineage, *start.lineage),
        base=start.base,
        data=(*origin.data, *start.data),
        data_tables={**start.data_tables, **origin.data_tables},
        hub_datasets=tuple(dict.fromkeys((*origin.hub_datasets, *start.hub_datasets))),
    )


def hub_name(text: str) -> str | None:
    """Return a hub repository's name without its revision; None: it is none."""
    return text.partition("@")[0] if re.fullmatch(HUB_NAME, text) else None


def _outside_of_runs(name: str, base: str | None) -> Origin:
    return Origin(
        method=f"Exported from {name}, which lies in no run of pi0-ript.",
        base=base,
        missing=("lineage, data and settings: the checkpoint does not say",),
    )


def _find_run(path: Path) -> tuple[Path, str, Mapping[str, Any], _Reader] | None:
    """Return the run that a policy's directory lies in, where in it, its settings, and what reads it."""
    for run in (path.parent, path, *path.parents[1:3]):  # a checkpoint keeps its run's settings, too
        settings, place = _settings(run), path.relative_to(run).as_posix()
        if settings.get("algorithm") == "recap":
            is_there, reader = is_recap_policy, read_recap_policy
        elif "algo" in settings:
            is_there, reader = is_ladder_policy, read_ladder_policy
        elif "dataset_mixture" in settings:
            is_there, reader = is_trained_policy, read_trained_policy
        else:
            continue
        if is_there(place):
            return run, place, settings, reader
    return None


def _settings(run: Path) -> Mapping[str, Any]:
    """Return the settings that a run saved; {}: it is none."""
    file, results = run / "experiment_cfg/config.yaml", run / "results.json"
    try:
        if file.is_file():
            values = yaml.safe_load(file.read_text())
        else:
            values = read_versioned_json(results).get("config") if results.is_file() else None
    except (yaml.YAMLError, json.JSONDecodeError, AttributeError, UnicodeDecodeError) as error:
        damaged = file if file.is_file() else results
        raise UnusableError(
            f"{damaged}: damaged ({error}); put it right, or copy the policy elsewhere"
        ) from error
    return values if isinstance(values, Mapping) else {}


def _start(policy_path: str, before: tuple[Path, ...]) -> Origin:
    """Return what is known of what a training began with, as it is to be told of what came out of it."""
    if policy_path == TOY:
        made = "a toy policy of random weights, which that run made and first trained"
        return Origin(method=made, lineage=(made,), base=TOY)
    path, shown = Path(policy_path).expanduser(), shown_path(policy_path)
    if not path.is_dir():
        name = hub_name(policy_path)
        if name is not None and not path.parent.is_dir():
            return Origin(method=shown, lineage=(f"the checkpoint {policy_path} of the hub",), base=name)
        gone = f"{shown}, which is not here now: what it comes from is not known"
        return Origin(method=gone, lineage=(gone,))
    origin = read_origin(path, before)
    if origin.run is None:
        return replace(origin, lineage=(f"{shown}, a checkpoint that lies in no run",))
    return replace(
        origin,
        lineage=(f"{shown}: {origin.method}", *origin.lineage),
        data=tuple(_within(origin.run, text) for text in origin.data),
        data_tables={_within(origin.run, text): rows for text, rows in origin.data_tables.items()},
    )


def _within(run: Path, text: str) -> str:
    """Return a text of an earlier run with its name before it, once."""
    return text if text.startswith("In the run ") else f"In the run {run.name}: {text[0].lower()}{text[1:]}"

"""What is known of a policy, and what its readers share.

All of it is plain text from elsewhere; whoever shows it must escape it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pi0.ript.evaluate import Evaluation
from pi0.ript.evaluation_conditions import Conditions
from pi0.ript.policy_settings import TOY
from pi0.ript.results import read_evaluation

CHECKPOINT = re.compile(r"checkpoint-(\d+)(?:-.+)?")
"""Of the name of a checkpoint in a run."""
Rows = Sequence[Sequence[Any]]
"""A header, then the rows of a table."""


@dataclass(frozen=True)
class Origin:
    """What is known; parts that are not are empty, and `missing` says so."""

    method: str
    """How the policy was made, as a sentence."""
    run: Path | None = None
    """None: the policy lies in no run."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    lineage: tuple[str, ...] = ()
    """What the policy comes from, the nearest first."""
    base: str | None = None
    """The checkpoint that all began with: a hub repository or a directory; "toy"; None: not known."""
    data: tuple[str, ...] = ()
    """Sentences."""
    data_tables: Mapping[str, Rows] = field(default_factory=dict)
    """By caption."""
    hub_datasets: tuple[str, ...] = ()
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)
    """Of the policy and of others, by name."""
    meanings: Mapping[str, str] = field(default_factory=dict)
    """What others than this policy are or act with, by their names among the evaluations."""
    own: str | None = None
    """The name of this policy's evaluation; None: it has none."""
    conditions: Conditions | None = None
    """Of that evaluation."""
    videos: Mapping[str, Path] = field(default_factory=dict)
    """Of evaluations, by their names; they are there."""
    missing: tuple[str, ...] = ()
    """What else the files do not say, as phrases; that there is no success is what `own` says."""


def starting_path(settings: Mapping[str, Any]) -> str:
    """Return what a training began with, by any of the names that the setting has had."""
    policy = settings.get("policy") or {}
    names = (settings.get("policy_path"), policy.get("policy_path"), policy.get("pretrained_path"))
    return next((str(name) for name in names if name), TOY)


def present_evaluations(run: Path, files: Mapping[str, str]) -> dict[str, Evaluation]:
    """Return the evaluations that are there, by name; `files` are paths in the run without their endings."""
    paths = {name: run / f"{file}.json" for name, file in files.items()}
    return {name: read_evaluation(path) for name, path in paths.items() if path.exists()}


def present_videos(run: Path, files: Mapping[str, str]) -> dict[str, Path]:
    """Return the videos that are there, by name, as `present_evaluations` does."""
    paths = {name: run / f"{file}.mp4" for name, file in files.items()}
    return {name: path for name, path in paths.items() if path.exists()}


def shown_path(text: str) -> str:
    """Return a path as others may read it: of an absolute one only the last two parts."""
    return f".../{'/'.join(Path(text).parts[-2:])}" if text.startswith(("/", "~")) else text


def listed(values: Mapping[str, Any]) -> str:
    """Return names and values that are not None, in one line."""
    return ", ".join(f"{key} {value}" for key, value in values.items() if value is not None)

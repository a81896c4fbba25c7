"""What a RECAP run has left in its directory so far.

Axes: none.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pi0.ript.episodes import EpisodeDataError
from pi0.ript.evaluate import Evaluation
from pi0.ript.files import read_json
from pi0.ript.labels.calibration import Calibration
from pi0.ript.labels.frames import (
    FRAMES_FILE,
    THRESHOLDS_FILE,
    LabelledFrames,
    read_labelled_frames,
    read_thresholds,
)

SFT = "SFT"


@dataclass(frozen=True)
class RecapRun:
    """The parts that are there; a run under way has fewer."""

    directory: Path
    evaluation_dirs: dict[str, Path]
    """By stage in order: "SFT", "round 1", ...; each with an evaluation."""
    baseline_dirs: dict[str, Path]
    """Of other policies, by the names of their directories."""
    evaluations: dict[str, Evaluation]
    baselines: dict[str, Evaluation]
    calibrations: dict[str, Calibration]
    """Of the value functions: "pretrained", "round 1", ..."""
    frames: dict[int, dict[str, LabelledFrames]]
    """By round, then by source."""
    thresholds: dict[int, dict[str, float]]
    """By round: epsilon by task id; empty where there is no file."""
    stages: dict[str, dict[str, Any]]
    """Of recap_state.json."""

    @property
    def last(self) -> str | None:
        """Return the newest evaluated round; None if there is none."""
        rounds = [name for name in self.evaluations if name != SFT]
        return rounds[-1] if rounds else None

    def rollouts(self, number: int) -> Path:
        """Return where the rollouts of a round are, or will be."""
        return self.directory / f"round-{number}/rollouts/dataset"


def read_recap_run(directory: Path, names: Collection[str] | None = None) -> RecapRun:
    """Return what a run directory holds; `names`: only these stages, not those of an earlier configuration.

    Raises:
        EpisodeDataError: A `frames.npz` is damaged.
        ValueError: Another file is.
    """
    state = directory / "recap_state.json"
    recorded = read_json(state)["stages"] if state.exists() else {}

    def is_meant(path: Path) -> bool:
        return names is None or path.relative_to(directory).as_posix() in names

    rounds = _rounds(directory)
    stages = {SFT: directory / "sft-evaluation"}
    stages |= {f"round {n}": path / "evaluation" for n, path in rounds.items()}
    baselines = {path.parent.name: path for path in sorted(directory.glob("baseline-*/evaluation"))}
    stages, baselines = (
        {
            name: path
            for name, path in places.items()
            if is_meant(path) and (path / "evaluation.json").exists()
        }
        for places in (stages, baselines)
    )
    values = {"pretrained": directory / "value"} | {f"round {n}": p / "value" for n, p in rounds.items()}
    values = {name: path for name, path in values.items() if is_meant(path)}
    labelled = {n: path / "advantages" for n, path in rounds.items()}
    labelled = {n: p for n, p in labelled.items() if is_meant(p) and (p / FRAMES_FILE).exists()}
    return RecapRun(
        directory=directory,
        evaluation_dirs=stages,
        baseline_dirs=baselines,
        evaluations={name: _evaluation(path) for name, path in stages.items()},
        baselines={name: _evaluation(path) for name, path in baselines.items()},
        calibrations={n: _calibration(p) for n, p in values.items() if (p / "calibration.json").exists()},
        frames={n: _frames(directory, path / FRAMES_FILE) for n, path in labelled.items()},
        thresholds={n: read_thresholds(path / THRESHOLDS_FILE) for n, path in labelled.items()},
        stages={name: stage for name, stage in recorded.items() if names is None or name in names},
    )


def _rounds(directory: Path) -> dict[int, Path]:
    """Return the directories of the rounds by number, in order."""
    found = [(path.name.removeprefix("round-"), path) for path in directory.glob("round-*")]
    return dict(sorted((int(number), path) for number, path in found if number.isdecimal()))


def _frames(directory: Path, path: Path) -> dict[str, LabelledFrames]:
    """Return the sources of a round; those that are rollouts of this run know their tasks."""
    sources = read_labelled_frames(path)
    for name, source in sources.items():
        rollouts = directory / f"round-{name.removeprefix('rollouts-')}/rollouts/dataset"
        tables = sorted((rollouts / "meta/episodes").glob("*/*.parquet"))
        if not tables:
            continue
        columns = ["episode_index", "length", "task_id"]
        rows = pa.concat_tables([pq.read_table(p, columns=columns) for p in tables]).sort_by("episode_index")
        if rows["length"].to_pylist() != source.lengths.tolist():
            raise EpisodeDataError(
                f"{path}: {name}/lengths: expected those of the {len(rows)} episodes in {rollouts}, found "
                "others; compute the advantages again"
            )
        sources[name] = replace(source, tasks=tuple(rows["task_id"].to_pylist()))
    return sources


def _evaluation(directory: Path) -> Evaluation:
    return Evaluation.from_dict(read_json(directory / "evaluation.json"))


def _calibration(directory: Path) -> Calibration:
    """Return the figures of a calibration.json, which may hold others too."""
    found = json.loads((directory / "calibration.json").read_text())
    return Calibration(**{field.name: found[field.name] for field in fields(Calibration)})

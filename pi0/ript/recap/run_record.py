"""What a RECAP run has left in its directory so far."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pi0.ript.evaluate import Evaluation
from pi0.ript.files import read_versioned_json
from pi0.ript.labels.calibration import Calibration
from pi0.ript.labels.frames import (
    FRAMES_FILE,
    THRESHOLDS_FILE,
    LabelledFrames,
    read_labelled_frames,
    read_thresholds,
)
from pi0.ript.results import read_evaluation


@dataclass(frozen=True)
class RecapRun:
    """The parts that are there; a run under way has fewer."""

    directory: Path
    evaluations: dict[str, Evaluation]
    """The evaluations in order, by stage: "SFT", "round 1", ..."""
    baselines: dict[str, Evaluation]
    """The evaluations of other policies, by their directories or, in rounds, as "filtered, round 1"."""
    videos: dict[str, Path]
    """Where the videos of evaluations and baselines are, or would be."""
    calibrations: dict[str, Calibration]
    """How good the value functions are: "pretrained", "round 1", ..."""
    frames: dict[int, dict[str, LabelledFrames]]
    """What the value function says of the frames, by round, then by source."""
    thresholds: dict[int, dict[str, float]]
    """Epsilon by round, then by task id; empty for a round without the file."""
    stages: dict[str, dict[str, Any]]
    """The records of recap_state.json, by stage."""
    published: str | None = None
    """The name of the evaluated policy that was chosen; None: the run is under way, or of version 0.1.0."""

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
    recorded = read_versioned_json(state)["stages"] if state.exists() else {}

    def files[Key](name: str, places: Mapping[Key, Path]) -> dict[Key, Path]:
        """Return the files of a name that are there, of the stages that are asked for."""
        paths = {key: place / name for key, place in places.items() if is_wanted(place)}
        return {key: path for key, path in paths.items() if path.exists()}

    def is_wanted(stage: Path) -> bool:
        return names is None or stage.relative_to(directory).as_posix() in names

    rounds = _rounds(directory)
    named = {f"round {number}": path for number, path in rounds.items()}
    stages = {"SFT": directory / "sft-evaluation"} | {n: path / "evaluation" for n, path in named.items()}
    values = {"pretrained": directory / "value"} | {n: path / "value" for n, path in named.items()}
    judged = [*directory.glob("baseline-*/evaluation"), *directory.glob("baseline-*/round-*/evaluation")]
    others = {_rival(path.parent.relative_to(directory)): path for path in sorted(judged)}
    evaluations, baselines = files("evaluation.json", stages), files("evaluation.json", others)
    labels = files(FRAMES_FILE, {number: path / "advantages" for number, path in rounds.items()})
    return RecapRun(
        directory=directory,
        evaluations={name: read_evaluation(file) for name, file in evaluations.items()},
        baselines={name: read_evaluation(file) for name, file in baselines.items()},
        videos={name: file.with_suffix(".mp4") for name, file in {**evaluations, **baselines}.items()},
        calibrations={name: _calibration(file) for name, file in files("calibration.json", values).items()},
        frames={number: read_labelled_frames(file) for number, file in labels.items()},
        thresholds={
            number: read_thresholds(file.with_name(THRESHOLDS_FILE)) for number, file in labels.items()
        },
        stages={name: stage for name, stage in recorded.items() if names is None or name in names},
        published=_published(directory / "results.json"),
    )


def _rival(place: Path) -> str:
    """Return what a policy that RECAP's are compared with is called: by its directory, or with its round."""
    name = place.parts[0]
    return (
        ", ".join([name.removeprefix("baseline-"), place.name.replace("-", " ")])
        if place.name != name
        else name
    )


def _published(results: Path) -> str | None:
    return read_versioned_json(results).get("published") if results.exists() else None


def _rounds(directory: Path) -> dict[int, Path]:
    """Return the directories of the rounds by number, in order."""
    paths = [(path.name.removeprefix("round-"), path) for path in directory.glob("round-*")]
    return dict(sorted((int(number), path) for number, path in paths if number.isdecimal()))


def _calibration(file: Path) -> Calibration:
    """Return the figures of a calibration.json, which may hold others too."""
    return Calibration.from_dict(json.loads(file.read_text()))

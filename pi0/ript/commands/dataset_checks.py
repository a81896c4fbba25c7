"""`pi0-doctor --dataset`: everything that is wrong with data sets, and the figures that one wants of them.

Axes: n frame of a set, d dimension of a vector.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float32

from pi0.features import ACTION, STATE
from pi0.ript.commands.findings import Finding
from pi0.ript.data.frame_set import FrameSet
from pi0.ript.data.hub import locate
from pi0.ript.data.images import FilmedImages, StoredImages
from pi0.ript.data.reader import examine
from pi0.ript.data.records import EpisodeDataError
from pi0.ript.data.settings import DatasetSettings
from pi0.ript.data.statistics import pooled_statistics
from pi0.ript.data.tables import column_names, told_faults

_OTHER_NAMES = {STATE: "state", ACTION: "actions"}  # as openpi's LIBERO has them
_STILL = 0.01  # of a dimension's range that the middle 98 % of its values cover
_LARGE_GROUP = 2**27  # bytes


@dataclass(frozen=True)
class DatasetReport:
    """What is to be said of a data set."""

    name: str
    findings: list[Finding]
    figures: dict[str, Any] = field(default_factory=dict)
    episode_hashes: dict[int, str] = field(default_factory=dict, repr=False)
    """Of states and actions, by the episode's number."""

    @property
    def can_be_trained_on(self) -> bool:
        """Return whether nothing failed."""
        return not any(finding.level == "FAIL" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values for JSON."""
        findings = [asdict(finding) for finding in self.findings]
        return {
            "name": self.name,
            "can_be_trained_on": self.can_be_trained_on,
            "findings": findings,
            "figures": self.figures,
        }


def dataset_reports(names: Sequence[str]) -> list[DatasetReport]:
    """Return a report of each data set, a directory or a name on the hub; shared episodes are in the last."""
    reports = [_report(name) for name in names]
    reports[-1].findings.extend(_shared_episodes(reports))
    return reports


def _report(name: str) -> DatasetReport:
    settings, findings = DatasetSettings(repo_id=name), []
    try:
        place = locate(settings)
        there = column_names(place.root)
        renamed = {key: other for key, other in _OTHER_NAMES.items() if key not in there and other in there}
        if renamed:
            settings.data_features_name_mapping.update(renamed)
            remedy = f"set data_features_name_mapping: {renamed} of the data set"
            findings.append(Finding("warn", "columns have other names than lerobot's", remedy))
        frames, faults = examine(place, settings)
    except EpisodeDataError as error:
        return DatasetReport(name, [*findings, *(Finding("FAIL", line) for line in str(error).splitlines())])
    findings += [Finding("FAIL", text, remedy) for text, remedy in told_faults(faults)]
    if frames is None:
        return DatasetReport(name, findings)
    figures = _figures(frames)
    findings += _warnings(frames, figures)
    ends = np.cumsum(frames.lengths)
    hashes = {
        number: hashlib.sha256(frames.states[first:end].tobytes() + frames.actions[first:end].tobytes())
        for number, first, end in zip(frames.episodes.tolist(), ends - frames.lengths, ends, strict=True)
    }
    return DatasetReport(name, findings, figures, {number: x.hexdigest() for number, x in hashes.items()})


def _figures(frames: FrameSet) -> dict[str, Any]:
    tasks: dict[str, dict[str, Any]] = {}
    of_episodes = np.repeat(np.arange(len(frames.lengths)), frames.lengths)
    for number, text in enumerate(frames.instructions):
        own = frames.instruction_of == number
        tasks[text] = {"episodes": len(np.unique(of_episodes[own])), "frames": int(own.sum())}
    success = Counter({True: "yes", False: "no", None: "unknown"}[labels.success] for labels in frames.labels)
    sizes = {camera: frames.image_sizes(camera) for camera in frames.images}
    pixels = {camera: float(np.mean([height * width for height, width in x])) for camera, x in sizes.items()}
    return {
        "episodes": len(frames.lengths),
        "frames": frames.num_frames,
        "fps": frames.fps,
        "hours": round(frames.num_frames / frames.fps / 3600, 4),
        "lengths": {
            "shortest": int(frames.lengths.min()),
            "median": float(np.median(frames.lengths)),
            "longest": int(frames.lengths.max()),
        },
        "tasks": tasks,
        "success": {answer: success[answer] for answer in ("yes", "no", "unknown")},
        "cameras": {
            camera: {
                "sizes": [list(size) for size in sizes[camera]],
                "stored_as": "video" if isinstance(column, FilmedImages) else "image",
                "decoded_gb": round(3 * pixels[camera] * frames.num_frames / 1e9, 6),
            }
            for camera, column in frames.images.items()
        },
        "statistics": {STATE: _statistics(frames.states), ACTION: _statistics(frames.actions)},
        "dimensions_that_hardly_move": {
            STATE: _still_dimensions(frames.states),
            ACTION: _still_dimensions(frames.actions),
        },
    }


def _statistics(values: Float32[np.ndarray, "n d"]) -> dict[str, list[float]]:
    finite = values[np.isfinite(values).all(1)]
    numbers = pooled_statistics([finite]) if len(finite) else {}
    return {name: x.tolist() for name, x in numbers.items() if name != "count"}


def _still_dimensions(values: Float32[np.ndarray, "n d"]) -> list[int]:
    """Return the dimensions whose values are nearly all the same: quantiles would blow up the others."""
    finite = values[np.isfinite(values).all(1)].astype(np.float64)
    if not len(finite):
        return []
    low, high = np.quantile(finite, [0.01, 0.99], axis=0)
    return np.flatnonzero(high - low <= _STILL * (finite.max(0) - finite.min(0))).tolist()


def _warnings(frames: FrameSet, figures: Mapping[str, Any]) -> Iterator[Finding]:
    if unknown := figures["success"]["unknown"]:
        remedy = "a value function needs them: pi0-label, or say assume_success where all succeed"
        yield Finding("warn", f"{unknown} of {len(frames.lengths)} episodes have no success label", remedy)
    for key, still in figures["dimensions_that_hardly_move"].items():
        numbers = figures["statistics"][key]
        for dimension in still:
            low, q01, q99, high = (numbers[name][dimension] for name in ("min", "q01", "q99", "max"))
            if low == high:
                text = f"{key}[{dimension}] is always {low:.4g}"
                remedy = "was it connected to the recorder? A policy learns nothing of other values"
            else:
                most = f"in 98 % of the frames {q01:.4g} to {q99:.4g}"
                text = f"{key}[{dimension}] hardly moves: {low:.4g} to {high:.4g}, {most}"
                remedy = (
                    "normalise it by mean and std, or widen its quantiles (policy.outside_statistics=widen)"
                )
            yield Finding("warn", text, remedy)
    for camera, column in frames.images.items():
        if len(frames.image_sizes(camera)) > 1:
            remedy = "set dataset_mixture.image_size to the policy's"
            yield Finding("warn", f"{camera}: images of sizes {frames.image_sizes(camera)}", remedy)
        if isinstance(column, StoredImages) and (size := column.largest_group) > _LARGE_GROUP:
            remedy = "each is read for one image; write the files with a row group per episode"
            yield Finding("warn", f"{camera}: row groups of up to {size / 2**20:.0f} MiB", remedy)


def _shared_episodes(reports: Sequence[DatasetReport]) -> Iterator[Finding]:
    """Yield which sets hold the same episodes, by states and actions; also which are there twice in one."""
    remedy = "leave them out of one (excluded_episodes), or they can be on both sides of the validation split"
    for report in reports:
        owners = defaultdict[str, list[int]](list)
        for number, digest in report.episode_hashes.items():
            owners[digest].append(number)
        if twice := [numbers for numbers in owners.values() if len(numbers) > 1]:
            text = f"{report.name}: the same episode under several numbers: {twice[:5]}"
            yield Finding("warn", text, remedy)
    for one, other in combinations(reports, 2):
        there = {digest: number for number, digest in other.episode_hashes.items()}
        pairs = [(number, there[digest]) for number, digest in one.episode_hashes.items() if digest in there]
        if pairs:
            count = f"{len(pairs)} episode{'s' if len(pairs) > 1 else ''}"
            text = f"{one.name} and {other.name} share {count}, by their numbers: {pairs[:5]}"
            yield Finding("warn", text, remedy)


def print_report(report: DatasetReport) -> None:
    """Print what is to be said of a data set, a line each: findings, then figures."""
    print(report.name)  # noqa: T201
    for finding in report.findings:
        print(finding)  # noqa: T201
    if report.can_be_trained_on:
        print("ok    files, numbers and frames agree: it can be trained on")  # noqa: T201
    for line in _figure_lines(report.figures) if report.figures else ():
        print(f"      {line}")  # noqa: T201


def _figure_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    lengths, success = figures["lengths"], figures["success"]
    yield (
        f"{figures['episodes']:,} episodes, {figures['frames']:,} frames at {figures['fps']:g} fps "
        f"({_duration(figures['frames'] / figures['fps'])}); lengths {lengths['shortest']} to "
        f"{lengths['longest']}, median {lengths['median']:g}"
    )
    yield f"success: {success['yes']} yes, {success['no']} no, {success['unknown']} unknown"
    for text, x in figures["tasks"].items():
        yield f"task {text!r}: {x['episodes']} episodes, {x['frames']} frames"
    for camera, x in figures["cameras"].items():
        sizes = ", ".join(f"{width}x{height}" for height, width in x["sizes"])
        gigabytes = x["decoded_gb"]
        size = f"{gigabytes:.3g} GB" if gigabytes >= 1 else f"{1000 * gigabytes:.3g} MB"
        yield f"camera {camera}: {sizes}, stored as {x['stored_as']}, {size} decoded"
    names = ("mean", "std", "min", "q01", "q99", "max")
    for key, statistics in figures["statistics"].items():
        for dimension in range(len(statistics.get("mean", ()))):
            values = "".join(f"  {name} {statistics[name][dimension]:>10.4g}" for name in names)
            yield f"{f'{key}[{dimension}]':<21}{values}"


def _duration(seconds: float) -> str:
    """Return a time for people."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"

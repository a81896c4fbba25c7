"""The page of a data set: its facts, and some of its episodes over time."""

import html
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pi0.ript import page
from pi0.ript.data.frame_set import FrameSet
from pi0.ript.data.records import IMAGE_PREFIX, EpisodeLabels
from pi0.ript.labels.frames import LabelledFrames
from pi0.ript.pages.episode_figures import WHY, draw_beside, draw_episode, typical_episodes
from pi0.ript.pages.frame_figures import advantage_figure, positive_text, value_limits
from pi0.ript.progress import progress_bar


@dataclass(frozen=True)
class Labels:
    """What a value function says of the frames of a data set."""

    frames: LabelledFrames
    epsilon: dict[str, float]
    """By task id; empty where nobody knows."""


def write_dataset_page(
    path: Path,
    name: str,
    frames: FrameSet,
    shown: Sequence[int],
    labels: Labels | None,
    *,
    unlabelled_succeed: bool = False,
) -> Path:
    """Write the page of a data set and return it.

    Args:
        path: The page.
        name: What the data set is called.
        frames: The data set.
        shown: Numbers of the episodes that are drawn, as the set's files have them.
        labels: Values and advantages of all its frames; None where there are none.
        unlabelled_succeed: Say that episodes without a label count as successes.
    """
    count = f"{len(shown)} of {frames.num_episodes}"
    note = "Episodes without a success label count as successes here." if unlabelled_succeed else ""
    sections = [
        ("", page.cards(_facts(frames, labels)) + page.paragraph(note)),
        ("Tasks", _groups(frames, "task", lambda label: label.task_id or label.instruction)),
        ("Who acted", _groups(frames, "source", lambda label: label.source or "unknown")),
        ("Lengths", page.image(_length_figure(frames), "lengths")),
        ("Advantages", _advantages(labels)),
        ("Why a frame is positive: a success beside a failure", _beside(frames, labels)),
        (f"Episodes ({count})", _episodes(frames, shown, labels)),
        ("How it was made", _origin(frames)),
    ]
    return page.write_page(path, name, sections)


def _facts(frames: FrameSet, labels: Labels | None) -> list[tuple[str, str, str]]:
    count, successes = frames.num_episodes, int(frames.successes().sum())
    shapes = {key.removeprefix(IMAGE_PREFIX): x.shape for key, x in frames.images.items()}
    sizes = [f"{name} {width}x{height}" for name, (_, height, width, _) in shapes.items()]
    facts = [
        ("episodes", str(count), f"{len(set(frames.frame_tasks()))} task(s)"),
        ("success", f"{successes / count:.1%}", f"{successes}/{count}"),
        ("frames", str(frames.num_frames), f"{frames.num_frames / frames.fps:.1f} s at {frames.fps:g} fps"),
        ("cameras", str(len(sizes)), ", ".join(sizes)),
        ("state, action", f"{frames.states.shape[1]}, {frames.actions.shape[1]}", "dimensions"),
    ]
    if frames.is_corrected.any():
        share = f"{frames.is_corrected.mean():.1%}"
        facts.append(("corrected", share, "of the frames, by a person (orange)"))
    if labels is not None:
        advantages = labels.frames.advantages
        facts.append(("with advantage", f"{np.isfinite(advantages).mean():.1%}", "of the frames"))
    return facts


def _groups(frames: FrameSet, name: str, key: Callable[[EpisodeLabels], str]) -> str:
    """Return a table with a row for each value of a label."""
    rows = []
    for value in dict.fromkeys(map(key, frames.labels)):
        chosen = [i for i, label in enumerate(frames.labels) if key(label) == value]
        instructions = " / ".join(dict.fromkeys(frames.labels[i].instruction for i in chosen))
        ends = frames.successes()[chosen]
        success, length = (
            f"{ends.sum()}/{len(ends)} {ends.mean():.1%}",
            f"{frames.lengths[chosen].mean():.1f}",
        )
        rows.append([value, len(chosen), success, length, *([instructions] if name == "task" else [])])
    header = [name, "episodes", "success", "mean length", *(["instruction"] if name == "task" else [])]
    return page.table(header, rows, wraps=True)


def _length_figure(frames: FrameSet) -> Any:
    figure, (axes,) = page.new_axes()
    ends = frames.successes()
    low, high = int(frames.lengths.min()), int(frames.lengths.max())
    width = -(-(high - low + 1) // 40)  # whole steps, so that no bar covers more of them than another
    edges = np.arange(low, high + width + 1, width) - 0.5
    parts = [frames.lengths[ends], frames.lengths[~ends]]
    axes.hist(
        parts, edges.tolist(), stacked=True, color=[page.GREEN, page.PALE], label=["success", "failure"]
    )
    axes.set_xlabel("steps")
    axes.set_ylabel("episodes")
    axes.locator_params(axis="both", integer=True)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _advantages(labels: Labels | None) -> str:
    if labels is None:
        return ""
    figure = advantage_figure({"all frames": labels.frames}, labels.epsilon)
    if figure is None:
        return "<p>No frame has an advantage.</p>"
    limits = page.pairs({f"epsilon of {task}": value for task, value in labels.epsilon.items()})
    text = f"{positive_text(labels.frames, labels.epsilon)}; {limits or 'no threshold is known'}"
    return page.image(figure, "advantages", text)


def _beside(frames: FrameSet, labels: Labels | None) -> str:
    """Return a success and a failure of median length beside each other, where both have labels."""
    typical = typical_episodes(frames)
    if labels is None or not labels.epsilon or len(typical) < 2:
        return ""
    pair = [(frames.episode(place), labels.frames.episode(place)) for place in typical]
    figures = draw_beside(pair, labels.epsilon, value_limits([labels.frames]))
    numbers = frames.episodes[typical].tolist()
    parts = [
        page.image(figure, f"why {number}", _title(number, episode.labels, len(episode)))
        for number, figure, (episode, _) in zip(numbers, figures, pair, strict=True)
    ]
    return page.paragraph(WHY) + page.grid(parts)


def _episodes(frames: FrameSet, shown: Sequence[int], labels: Labels | None) -> str:
    limits = None if labels is None else value_limits([labels.frames])
    parts = []
    for number in progress_bar(shown, unit="episode", desc="drawing", disable=len(shown) < 2):
        place = frames.episodes.tolist().index(number)
        episode, own = frames.episode(place), None if labels is None else labels.frames.episode(place)
        epsilon = None if labels is None else labels.epsilon
        rows = slice(frames.starts[place], frames.starts[place] + frames.lengths[place])
        corrected = frames.is_corrected[rows]
        figure = draw_episode(
            episode, own, epsilon, value_limits=limits, with_motion=True, corrected=corrected
        )
        parts.append(f"<h3>{html.escape(_title(number, episode.labels, len(episode)))}</h3>")
        parts.append(page.image(figure, f"episode {number}"))
    return "".join(parts)


def _title(number: int, label: EpisodeLabels, length: int) -> str:
    task = f"{label.task_id}: {label.instruction}" if label.task_id else label.instruction
    acted = f", by {label.source}" if label.source else ""
    return f"{number}: {'success' if label.is_success else 'failure'}, {length} steps, {task}{acted}"


def _origin(frames: FrameSet) -> str:
    made = frames.collection
    return page.folded("meta/collection.json", json.dumps(made, indent=2)) if made else ""

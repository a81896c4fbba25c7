"""The page of a data set: its facts, and some of its episodes over time.

Axes: none.
"""

import html
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pi0.ript import page
from pi0.ript.data.records import EpisodeLabels
from pi0.ript.episodes import EpisodeSet
from pi0.ript.labels.frames import LabelledFrames
from pi0.ript.pages.episode_figures import draw_episode
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
    directory: Path,
    episodes: EpisodeSet,
    shown: Sequence[int],
    labels: Labels | None,
    *,
    unlabelled_succeed: bool = False,
) -> Path:
    """Write the page of a data set and return it.

    Args:
        path: The page.
        directory: The data set's root, which is named on the page.
        episodes: The data set.
        shown: Numbers of the episodes that are drawn.
        labels: Values and advantages of all its frames; None where there are none.
        unlabelled_succeed: Say that episodes without a label count as successes.
    """
    count = f"{len(shown)} of {len(episodes)}"
    note = "Episodes without a success label count as successes here." if unlabelled_succeed else ""
    sections = [
        ("", page.cards(_facts(episodes, labels)) + page.paragraph(note)),
        ("Tasks", _groups(episodes, "task", lambda label: label.task_id or label.instruction)),
        ("Who acted", _groups(episodes, "source", lambda label: label.source or "unknown")),
        ("Lengths", page.image(_length_figure(episodes), "lengths")),
        ("Advantages", _advantages(labels)),
        (f"Episodes ({count})", _episodes(episodes, shown, labels)),
        ("How it was made", _origin(episodes)),
    ]
    return page.write_page(path, directory.resolve().name, sections)


def _facts(episodes: EpisodeSet, labels: Labels | None) -> list[tuple[str, str, str]]:
    frames, successes = int(episodes.lengths.sum()), _successes(episodes.labels)
    shapes = {name: f"{x.shape[2]}x{x.shape[1]}" for name, x in episodes.images.items()}
    facts = [
        ("episodes", str(len(episodes)), f"{_tasks(episodes)} task(s)"),
        ("success", f"{successes / len(episodes):.1%}", f"{successes}/{len(episodes)}"),
        ("frames", str(frames), f"{frames / episodes.fps:.1f} s at {episodes.fps} fps"),
        ("cameras", str(len(shapes)), ", ".join(f"{name} {size}" for name, size in shapes.items())),
        ("state, action", f"{episodes.states.shape[1]}, {episodes.actions.shape[1]}", "dimensions"),
    ]
    if labels is not None:
        advantages = labels.frames.advantages
        facts.append(("with advantage", f"{np.isfinite(advantages).mean():.1%}", "of the frames"))
    return facts


def _tasks(episodes: EpisodeSet) -> int:
    return len({label.task_id or label.instruction for label in episodes.labels})


def _successes(labels: Sequence[EpisodeLabels]) -> int:
    return sum(label.success for label in labels)


def _groups(episodes: EpisodeSet, name: str, key: Callable[[EpisodeLabels], str]) -> str:
    """Return a table with a row for each value of a label."""
    rows = []
    for value in dict.fromkeys(map(key, episodes.labels)):
        chosen = [i for i, label in enumerate(episodes.labels) if key(label) == value]
        labels = [episodes.labels[i] for i in chosen]
        instructions = " / ".join(dict.fromkeys(label.instruction for label in labels))
        success = f"{_successes(labels)}/{len(labels)} {_successes(labels) / len(labels):.1%}"
        length = f"{episodes.lengths[chosen].mean():.1f}"
        rows.append([value, len(labels), success, length, *([instructions] if name == "task" else [])])
    header = [name, "episodes", "success", "mean length", *(["instruction"] if name == "task" else [])]
    return page.table(header, rows, wraps=True)


def _length_figure(episodes: EpisodeSet) -> Any:
    figure, (axes,) = page.new_axes()
    ends = np.array([label.success for label in episodes.labels])
    low, high = int(episodes.lengths.min()), int(episodes.lengths.max())
    width = -(-(high - low + 1) // 40)  # whole steps, so that no bar covers more of them than another
    edges = np.arange(low, high + width + 1, width) - 0.5
    parts = [episodes.lengths[ends], episodes.lengths[~ends]]
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


def _episodes(episodes: EpisodeSet, shown: Sequence[int], labels: Labels | None) -> str:
    limits = None if labels is None else value_limits([labels.frames])
    parts = []
    for number in progress_bar(shown, unit="episode", desc="drawing", disable=len(shown) < 2):
        label = episodes.labels[number]
        epsilon = None if labels is None else labels.epsilon.get(label.task_id or label.instruction)
        frames = None if labels is None else labels.frames.episode(number)
        figure = draw_episode(episodes[number], frames, epsilon, value_limits=limits, with_motion=True)
        parts.append(f"<h3>{html.escape(_title(number, label, int(episodes.lengths[number])))}</h3>")
        parts.append(page.image(figure, f"episode {number}"))
    return "".join(parts)


def _title(number: int, label: EpisodeLabels, length: int) -> str:
    task = f"{label.task_id}: {label.instruction}" if label.task_id else label.instruction
    acted = f", by {label.source}" if label.source else ""
    return f"{number}: {'success' if label.success else 'failure'}, {length} steps, {task}{acted}"


def _origin(episodes: EpisodeSet) -> str:
    made = episodes.collection
    return page.folded("meta/collection.json", json.dumps(made, indent=2)) if made else ""

"""An episode over time: a strip of its frames, and under it what a value function says of each.

The frames stand over their steps of the curves. Axes: t frame of an episode, d curve, h w image size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, UInt8

from pi0.ript.data.frame_set import FrameSet
from pi0.ript.data.records import Episode
from pi0.ript.labels.frames import LabelledFrames
from pi0.ript.page import BLUE, GREEN, GREY, ORANGE, PALE, set_style

_PANEL, _BAND, _GAP, _BOTTOM, _TOP = 1.35, 0.22, 0.16, 0.45, 0.08  # inches
_LARGEST_LEGEND = 8
_HATCH = "////"


@dataclass(frozen=True)
class _Layout:
    """Measures of a figure, in inches."""

    width: float
    right: float
    """Room for the legends; none if they stand below."""
    below: float
    """Room for them there."""
    frames: int
    """How many images of each camera are shown."""
    dpi: int
    left: float = 0.75


_ALONE = _Layout(width=11.0, right=1.35, below=0.0, frames=8, dpi=110)
_BESIDE = _Layout(width=5.2, right=0.1, below=0.8, frames=5, dpi=130)
WHY = (
    "A frame is positive (green) where its advantage, what the next steps brought beyond what the value "
    "function expected, is above the threshold (dashed). Where the band is hatched, it is above as well, but "
    "the episode failed, and nothing of a failure is imitated."
)
"""What the figures show, in words."""


def typical_episodes(frames: FrameSet) -> list[int]:
    """Return a success and a failure, each of median length, of the first task that has both.

    If no task has both, those of all tasks together; only one if all episodes ended alike.
    """
    tasks = [labels.task_id or labels.instruction for labels in frames.labels]
    ends = frames.successes().tolist()
    seen = set(zip(tasks, ends, strict=True))
    both = [task for task in dict.fromkeys(tasks) if {(task, True), (task, False)} <= seen]
    chosen = [i for i, task in enumerate(tasks) if not both or task == both[0]]
    typical = []
    for end in (True, False):
        ranked = sorted((i for i in chosen if ends[i] is end), key=lambda i: (frames.lengths[i], i))
        typical += ranked[(len(ranked) - 1) // 2 :][:1]
    return typical


def draw_beside(
    episodes: Sequence[tuple[Episode, LabelledFrames]],
    epsilon: Mapping[str, float],
    value_limits: tuple[float, float] | None = None,
) -> list[Any]:
    """Return a narrow figure of each episode, to stand beside each other: their axes are alike."""
    advantages = np.concatenate([labels.advantages for _, labels in episodes])
    limits = [labels.limits(epsilon) for _, labels in episodes]
    known = np.concatenate([advantages, *(x for x in limits if x is not None), [0.0]])
    known = known[np.isfinite(known)]
    room = 0.05 * (known.max() - known.min()) or 0.01
    both = (float(known.min() - room), float(known.max() + room))
    return [
        _draw(episode, labels, epsilon, _BESIDE, value_limits, both, num_cameras=1)
        for episode, labels in episodes
    ]


def draw_episode(
    episode: Episode,
    labels: LabelledFrames | None = None,
    epsilon: Mapping[str, float] | None = None,
    *,
    value_limits: tuple[float, float] | None = None,
    with_motion: bool = False,
    num_cameras: int | None = None,
    corrected: Bool[np.ndarray, " t"] | None = None,
) -> Any:
    """Return a matplotlib figure of an episode.

    Args:
        episode: The episode; about eight frames per camera are shown.
        labels: Values, returns and advantages of this episode alone; drawn if there are any.
        epsilon: Threshold of each task's advantages; the positive steps are marked.
        value_limits: Limits of the axis of values, to make figures comparable; None: those of the curves.
        with_motion: Draw states and actions too.
        num_cameras: How many cameras are shown, the first ones; None: all.
        corrected: Steps in which a person acted, to be marked; None: none.
    """
    shown = {"num_cameras": num_cameras, "with_motion": with_motion, "corrected": corrected}
    return _draw(episode, labels, epsilon, _ALONE, value_limits, **shown)


def _draw(
    episode: Episode,
    labels: LabelledFrames | None,
    epsilon: Mapping[str, float] | None,
    layout: _Layout,
    value_limits: tuple[float, float] | None,
    advantage_limits: tuple[float, float] | None = None,
    *,
    num_cameras: int | None = None,
    with_motion: bool = False,
    corrected: Bool[np.ndarray, " t"] | None = None,
) -> Any:
    from matplotlib.figure import Figure

    strips = list(episode.images.items())[:num_cameras]
    limits = None if labels is None else labels.limits(epsilon or {})
    shown = shown_frames(len(episode), layout.frames)
    panels = _panels(episode, labels, limits, shown, value_limits, advantage_limits, with_motion)
    count = min(layout.frames, len(episode))
    inside = layout.width - layout.left - layout.right
    heights = [inside / layout.frames * frames.shape[1] / frames.shape[2] for _, frames in strips]
    heights += [_BAND if draw.__name__ == "band" else _PANEL for draw in panels]
    bottom = _BOTTOM + layout.below
    total = sum(heights) + _GAP * (len(heights) - 1) + bottom + _TOP
    figure = Figure(figsize=(layout.width, total), dpi=layout.dpi)
    top = total - _TOP
    axes: list[Any] = []
    for height in heights:
        box = (layout.left / layout.width, (top - height) / total, inside / layout.width, height / total)
        axes.append(figure.add_axes(box, sharex=axes[0] if axes else None))
        top -= height + _GAP
    # The first frame stands over step 0 and the last over the last one.
    margin = (len(episode) - 1) / (2 * (layout.frames - 1)) if count > 1 else 0.5
    axes[0].set_xlim(-margin, len(episode) - 1 + margin)
    for (camera, frames), place in zip(strips, axes, strict=False):
        _draw_strip(place, camera, frames, layout.frames, 2 * margin)
    for draw, place in zip(panels, axes[len(strips) :], strict=True):
        draw(place)
        if corrected is not None and draw.__name__ != "band":
            _shade(place, corrected, ORANGE, "corrected")
        _finish(place, has_legend=not layout.below)
    axes[-1].set_xlabel("step")
    axes[-1].tick_params(labelbottom=True)
    if layout.below:
        named = dict(
            pair[::-1] for place in axes for pair in zip(*place.get_legend_handles_labels(), strict=True)
        )
        figure.legend(named.values(), named.keys(), loc="lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def _panels(
    episode: Episode,
    labels: LabelledFrames | None,
    epsilon: Float64[np.ndarray, " t"] | None,
    shown: Sequence[int],
    value_limits: tuple[float, float] | None,
    advantage_limits: tuple[float, float] | None,
    with_motion: bool,
) -> list[Callable[[Any], None]]:
    panels: list[Callable[[Any], None]] = []
    if labels is not None:
        positive = labels.labels
        if positive is None and epsilon is not None:
            positive = labels.advantages > epsilon
        if labels.values is not None:
            panels.append(lambda axes: _draw_values(axes, labels, positive, shown, value_limits))
        if np.isfinite(labels.advantages).any():
            panels.append(
                lambda axes: _draw_advantages(axes, labels.advantages, positive, epsilon, advantage_limits)
            )
        if positive is not None and epsilon is not None:
            is_above = labels.advantages > epsilon

            def band(axes: Any) -> None:
                _draw_reasons(axes, positive, is_above)

            panels.append(band)
    if with_motion:
        panels.append(lambda axes: _draw_curves(axes, "state", episode.states))
        panels.append(lambda axes: _draw_curves(axes, "action", episode.actions))
    return panels


def shown_frames(length: int, most: int = _ALONE.frames) -> list[int]:
    """Return which frames of an episode its strip shows: evenly spaced, the first and the last among them."""
    return np.linspace(0, length - 1, min(most, length)).round().astype(int).tolist()


def _draw_strip(
    axes: Any, camera: str, frames: UInt8[np.ndarray, "t h w 3"], most: int, width: float
) -> None:
    shown = shown_frames(len(frames), most)
    centers = np.linspace(0, len(frames) - 1, len(shown)).tolist()
    x_limits = axes.get_xlim()
    cell = 0.96 * (width if len(shown) > 1 else 1 / most)
    for center, frame in zip(centers, shown, strict=True):
        extent = (center - cell / 2, center + cell / 2, 0, 1)
        axes.imshow(frames[frame], extent=extent, aspect="auto", interpolation="lanczos")
    axes.set_xlim(x_limits)
    axes.set_ylim(0, 1)
    axes.set_ylabel(camera, fontsize=8, parse_math=False)
    axes.tick_params(left=False, bottom=False, labelleft=False, labelbottom=False)
    axes.spines[:].set_visible(False)


def _draw_values(
    axes: Any,
    labels: LabelledFrames,
    positive: np.ndarray | None,
    shown: Sequence[int],
    limits: tuple[float, float] | None,
) -> None:
    values = labels.values
    assert values is not None
    if labels.returns is not None:
        axes.plot(labels.returns, color=GREY, linestyle="--", linewidth=1, label="return")
    axes.plot(values, color=BLUE, linewidth=1.6, label="value")
    axes.plot(shown, values[list(shown)], "o", color=BLUE, markersize=4)
    if positive is not None:
        _shade(axes, positive, GREEN, "positive")
    if limits is not None:
        axes.set_ylim(*limits)
    axes.set_ylabel("value")


def _shade(axes: Any, steps: np.ndarray, color: str, label: str) -> None:
    """Shade some steps, neighbours in one piece."""
    bounds = np.flatnonzero(np.diff(steps.astype(int), prepend=0, append=0)).tolist()
    for number, (first, end) in enumerate(zip(bounds[::2], bounds[1::2], strict=True)):
        name = label if number == 0 else None
        axes.axvspan(first - 0.5, end - 0.5, color=color, alpha=0.22, linewidth=0, label=name)


def _draw_advantages(
    axes: Any,
    advantages: Float64[np.ndarray, " t"],
    positive: np.ndarray | None,
    epsilon: Float64[np.ndarray, " t"] | None,
    limits: tuple[float, float] | None,
) -> None:
    steps = np.flatnonzero(np.isfinite(advantages))
    kinds = [(np.ones(len(steps), bool), BLUE, "advantage")]
    if positive is not None:
        kinds = [(positive[steps], GREEN, "positive"), (~positive[steps], PALE, "not positive")]
    for chosen, color, label in kinds:
        if chosen.any():
            axes.bar(steps[chosen], advantages[steps[chosen]], 0.85, color=color, label=label)
    axes.axhline(0, color=GREY, linewidth=0.6)
    if epsilon is not None and np.isfinite(epsilon).all():
        label = "epsilon\n" + ", ".join(f"{x:.4g}" for x in dict.fromkeys(epsilon.tolist()))
        edges, steps = np.arange(len(epsilon) + 1) - 0.5, np.append(epsilon, epsilon[-1])
        axes.step(edges, steps, where="post", color=ORANGE, linewidth=1.2, linestyle="--", label=label)
    if limits is not None:
        axes.set_ylim(*limits)
    axes.set_ylabel("advantage")


def _draw_reasons(axes: Any, positive: Bool[np.ndarray, " t"], is_above: Bool[np.ndarray, " t"]) -> None:
    """Draw a band with the label of each step, and why it has it."""
    kinds = [
        (positive & is_above, "positive", {"color": GREEN}),
        (~positive & ~is_above, "not positive", {"color": PALE}),
        (
            ~positive & is_above,
            "above it, but a failure",
            {"facecolor": "white", "edgecolor": ORANGE, "hatch": _HATCH},
        ),
        (positive & ~is_above, "positive all the same", {"color": BLUE}),
    ]
    for chosen, label, style in kinds:
        steps = np.flatnonzero(chosen)
        if len(steps):
            axes.bar(steps, np.ones(len(steps)), 1.0, linewidth=0, label=label, **style)
    axes.set_ylim(0, 1)
    axes.set_ylabel("label", rotation=0, ha="right", va="center", fontsize=8)
    axes.tick_params(left=False, labelleft=False)


def _draw_curves(axes: Any, name: str, curves: Float[np.ndarray, "t d"]) -> None:
    for dimension in range(curves.shape[1]):
        label = str(dimension) if curves.shape[1] <= _LARGEST_LEGEND else None
        axes.plot(curves[:, dimension], linewidth=1, label=label)
    axes.set_ylabel(name)


def _finish(axes: Any, *, has_legend: bool) -> None:
    set_style(axes)
    axes.tick_params(labelsize=8, labelbottom=False)
    if has_legend and axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1.05), fontsize=8, handlelength=1.4)

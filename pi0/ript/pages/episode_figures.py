"""An episode over time: a strip of its frames, and under it what a value function says of each.

The frames stand over their steps of the curves. Axes: t frame of an episode, d curve, h w image size.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, UInt8

from pi0.ript.data.records import Episode
from pi0.ript.labels.frames import LabelledFrames
from pi0.ript.page import BLUE, GREEN, GREY, ORANGE, PALE, set_style

_WIDTH, _LEFT, _RIGHT = 11.0, 0.75, 1.35  # inches: figure, room for the ticks, room for the legend
_PANEL, _GAP, _BOTTOM, _TOP = 1.35, 0.16, 0.45, 0.08
_FRAMES = 8
_LARGEST_LEGEND = 8


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
    from matplotlib.figure import Figure

    strips = list(episode.images.items())[:num_cameras]
    limits = None if labels is None else labels.limits(epsilon or {})
    panels = _panels(episode, labels, limits, value_limits, with_motion)
    count = min(_FRAMES, len(episode))
    cell = (_WIDTH - _LEFT - _RIGHT) / _FRAMES
    heights = [cell * frames.shape[1] / frames.shape[2] for _, frames in strips] + [_PANEL] * len(panels)
    total = sum(heights) + _GAP * (len(heights) - 1) + _BOTTOM + _TOP
    figure = Figure(figsize=(_WIDTH, total), dpi=110)
    top = total - _TOP
    axes: list[Any] = []
    for height in heights:
        box = (_LEFT / _WIDTH, (top - height) / total, 1 - (_LEFT + _RIGHT) / _WIDTH, height / total)
        axes.append(figure.add_axes(box, sharex=axes[0] if axes else None))
        top -= height + _GAP
    # The first frame stands over step 0 and the last over the last one.
    margin = (len(episode) - 1) / (2 * (_FRAMES - 1)) if count > 1 else 0.5
    axes[0].set_xlim(-margin, len(episode) - 1 + margin)
    for (camera, frames), place in zip(strips, axes, strict=False):
        _draw_strip(place, camera, frames, count, 2 * margin)
    for draw, place in zip(panels, axes[len(strips) :], strict=True):
        draw(place)
        if corrected is not None:
            _shade(place, corrected, ORANGE, "corrected")
        _finish(place)
    axes[-1].set_xlabel("step")
    axes[-1].tick_params(labelbottom=True)
    return figure


def _panels(
    episode: Episode,
    labels: LabelledFrames | None,
    epsilon: Float64[np.ndarray, " t"] | None,
    value_limits: tuple[float, float] | None,
    with_motion: bool,
) -> list[Callable[[Any], None]]:
    panels: list[Callable[[Any], None]] = []
    if labels is not None:
        positive = labels.labels
        if positive is None and epsilon is not None:
            positive = labels.advantages > epsilon
        if labels.values is not None:
            panels.append(lambda axes: _draw_values(axes, labels, positive, value_limits))
        if np.isfinite(labels.advantages).any():
            panels.append(lambda axes: _draw_advantages(axes, labels.advantages, positive, epsilon))
    if with_motion:
        panels.append(lambda axes: _draw_curves(axes, "state", episode.states))
        panels.append(lambda axes: _draw_curves(axes, "action", episode.actions))
    return panels


def shown_frames(length: int) -> list[int]:
    """Return which frames of an episode its strip shows: evenly spaced, the first and the last among them."""
    return np.linspace(0, length - 1, min(_FRAMES, length)).round().astype(int).tolist()


def _draw_strip(
    axes: Any, camera: str, frames: UInt8[np.ndarray, "t h w 3"], count: int, width: float
) -> None:
    centers = np.linspace(0, len(frames) - 1, count).tolist()
    x_limits = axes.get_xlim()
    cell = 0.96 * (width if count > 1 else 1 / _FRAMES)
    for center, frame in zip(centers, shown_frames(len(frames)), strict=True):
        extent = (center - cell / 2, center + cell / 2, 0, 1)
        axes.imshow(frames[frame], extent=extent, aspect="auto", interpolation="lanczos")
    axes.set_xlim(x_limits)
    axes.set_ylim(0, 1)
    axes.set_ylabel(camera, fontsize=8, parse_math=False)
    axes.tick_params(left=False, bottom=False, labelleft=False, labelbottom=False)
    axes.spines[:].set_visible(False)


def _draw_values(
    axes: Any, labels: LabelledFrames, positive: np.ndarray | None, limits: tuple[float, float] | None
) -> None:
    values = labels.values
    assert values is not None
    if labels.returns is not None:
        axes.plot(labels.returns, color=GREY, linestyle="--", linewidth=1, label="return")
    axes.plot(values, color=BLUE, linewidth=1.6, label="value")
    shown = shown_frames(len(values))
    axes.plot(shown, values[shown], "o", color=BLUE, markersize=4)
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
    axes.set_ylabel("advantage")


def _draw_curves(axes: Any, name: str, curves: Float[np.ndarray, "t d"]) -> None:
    for dimension in range(curves.shape[1]):
        label = str(dimension) if curves.shape[1] <= _LARGEST_LEGEND else None
        axes.plot(curves[:, dimension], linewidth=1, label=label)
    axes.set_ylabel(name)


def _finish(axes: Any) -> None:
    set_style(axes)
    axes.tick_params(labelsize=8, labelbottom=False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1.05), fontsize=8, handlelength=1.4)

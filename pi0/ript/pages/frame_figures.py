"""Figures of all frames of some sources: their advantages, and their values against their returns.

Axes: n frame of some sources.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from pi0.ript.labels.frames import LabelledFrames
from pi0.ript.page import GREEN, GREY, ORANGE, PALE, new_axes

_LONGEST_NAME = 34
_TENTHS = np.linspace(-1, 0, 11)


def advantage_figure(frames: Mapping[str, LabelledFrames], epsilon: Mapping[str, float]) -> Any | None:
    """Return a histogram of the advantages of each source with the thresholds; None if nothing has any."""
    shown = {name: s for name, s in frames.items() if np.isfinite(s.advantages).any()}
    if not shown:
        return None
    finite = np.concatenate([s.advantages[np.isfinite(s.advantages)] for s in shown.values()])
    # A few frames far out would leave one bar for all others.
    low, high = np.percentile(finite, [0.5, 99.5]).tolist()
    known = [limit for limit in epsilon.values() if np.isfinite(limit)]
    limits = [low, high, *known]
    edges = np.linspace(min(limits), max(limits) + 1e-9, 61)
    figure, axes = new_axes(len(shown), (5.6, 2.5), most_columns=2)
    for place, (name, source) in zip(axes, shown.items(), strict=True):
        _draw_advantages(place, source, epsilon, edges)
        place.set_title(f"{shortened(name)}: {positive_text(source, epsilon)}", fontsize=10, parse_math=False)
        place.set_ylabel("frames")
        place.set_xlabel("advantage")
    return figure


def positive_text(source: LabelledFrames, epsilon: Mapping[str, float]) -> str:
    """Return the share of frames with an advantage that are above the threshold, as text."""
    has = np.isfinite(source.advantages)
    labelled = int(has.sum())
    positive = source.positive(epsilon) if epsilon else None
    missing = len(source.advantages) - labelled
    without = f", {missing} without advantage" if missing else ""
    if positive is None:
        return f"{labelled} frames{without}"
    return f"{(positive & has).sum() / max(labelled, 1):.1%} of {labelled} frames positive{without}"


def calibration_figure(rounds: Mapping[str, Sequence[LabelledFrames]]) -> Any | None:
    """Return value against return of all frames of each round; None if there are none."""
    shown = {name: _pairs(sources) for name, sources in rounds.items()}
    shown = {name: pairs for name, pairs in shown.items() if len(pairs[0])}
    if not shown:
        return None
    figure, axes = new_axes(len(shown), (3.6, 3.6), most_columns=3)
    for place, (name, (values, returns)) in zip(axes, shown.items(), strict=True):
        _draw_calibration(place, values, returns)
        place.set_title(f"{name}: {len(values)} frames", fontsize=10)
    axes[0].set_ylabel("return")
    return figure


def value_limits(sources: Sequence[LabelledFrames]) -> tuple[float, float] | None:
    """Return limits that hold all values and returns, for curves that are to be compared."""
    values, returns = _pairs(sources)
    if not len(values):
        return None
    low, high = float(min(values.min(), returns.min())), float(max(values.max(), returns.max()))
    room = max(0.05 * (high - low), 0.01)
    return low - room, high + room


def shortened(name: str) -> str:
    """Return a name that fits a plot."""
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 3] + "..."


def _draw_advantages(
    axes: Any, source: LabelledFrames, epsilon: Mapping[str, float], edges: Float64[np.ndarray, " _"]
) -> None:
    inside = np.clip(source.advantages, edges[0], edges[-1])  # those beyond count in the outermost bars
    positive = source.positive(epsilon) if epsilon else None
    has = np.isfinite(source.advantages)
    if positive is None:
        axes.hist(inside[has], edges, color=PALE)
    else:
        parts = [inside[has & ~positive], inside[has & positive]]
        axes.hist(parts, edges, stacked=True, color=[PALE, GREEN], label=["not positive", "positive"])
    for number, limit in enumerate(sorted({limit for limit in epsilon.values() if np.isfinite(limit)})):
        label = "epsilon" if number == 0 else None
        axes.axvline(limit, color=ORANGE, linestyle="--", linewidth=1.3, label=label)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=8)


def _draw_calibration(
    axes: Any, values: Float64[np.ndarray, " n"], returns: Float64[np.ndarray, " n"]
) -> None:
    bins = np.linspace(-1, 0, 41)
    counts, _, _ = np.histogram2d(values, returns, bins)
    axes.pcolormesh(bins, bins, np.ma.masked_equal(counts.T, 0), cmap="Blues", norm="log")
    axes.plot([-1, 0], [-1, 0], color=GREY, linewidth=1, linestyle="--", label="value = return")
    tenths = np.clip(np.digitize(values, _TENTHS) - 1, 0, 9)
    means = [(values[tenths == i].mean(), returns[tenths == i].mean()) for i in np.unique(tenths)]
    axes.plot(*zip(*means, strict=True), "o-", color=ORANGE, markersize=4, label="mean of each tenth")
    axes.set_xlabel("value")
    axes.set_aspect("equal")
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def _pairs(sources: Sequence[LabelledFrames]) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Return the values and returns of all frames."""
    values = [s.values for s in sources if s.values is not None and s.returns is not None]
    returns = [s.returns for s in sources if s.values is not None and s.returns is not None]
    return np.concatenate([*values, np.zeros(0)]), np.concatenate([*returns, np.zeros(0)])

"""The plots of a run's rows of metrics."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from pi0.ript.evaluate import Evaluation
from pi0.ript.page import BLUE, GREEN, GREY, ORANGE, PALE, new_axes

Row = Mapping[str, Any]

_COLORS = (BLUE, ORANGE, GREEN, "#8a63b3", "#c44e52", "#4aa8b5", "#b59a3b", GREY)
_LINES = {
    "loss": "loss",
    "accuracy": "accuracy",
    "error": "error",
    "advantage": "spread of the advantages",
    "gradient_norm": "norm of the gradient",
    "learning_rate": "learning rate",
}
"""Title of a plot by the word that the keys of its lines contain, which is also its name."""
_TOTAL = "time/iteration_s"
_MOST_BARS = 60


def draw_plots(rows: Sequence[Row], evaluations: Sequence[tuple[int, Evaluation]]) -> dict[str, Any]:
    """Return a figure by its name for each plot that there are data for.

    Args:
        rows: Rows of `read_rows`; what they have of success, losses, groups, times, ... is drawn.
        evaluations: Evaluations with their places on the axis of steps; drawn with their intervals.
    """
    from matplotlib.ticker import MaxNLocator

    keys = list(dict.fromkeys(key for row in rows for key in row))
    lines = {word: [key for key in keys if word in key] for word in _LINES}
    plots: dict[str, Callable[[Any], bool]] = {
        "success": partial(_success, rows=rows, keys=keys, evaluations=evaluations),
        **{
            word: partial(_lines, rows=rows, keys=lines[word], title=_LINES[word])
            for word in _LINES
            if lines[word]
        },
        "groups": partial(_groups, rows=rows),
        "time": partial(_time, rows=rows, keys=keys),
    }
    figures = {}
    for name, draw in plots.items():
        figure, (axes,) = new_axes()
        if not draw(axes):
            continue
        axes.set_xlabel("iteration" if "iteration" in keys else "step")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        low, high = axes.get_xlim()
        axes.set_xlim(low, max(high, low + 3))  # one iteration does not fill the plot
        if len(axes.get_legend_handles_labels()[1]) > 1:
            figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
        figures[name] = figure
    return figures


def draw_interval(axes: Any, place: int | float, evaluation: Evaluation, **style: Any) -> None:
    """Draw the success of an evaluation in percent, with its interval."""
    rate = 100 * evaluation.success_rate
    low, high = (100 * bound for bound in evaluation.interval)
    axes.errorbar(place, rate, [[rate - low], [high - rate]], capsize=4, markersize=6, **style)


def _series(rows: Sequence[Row], key: str) -> tuple[list[int], list[float]]:
    """Return steps and values of a key, where it has one."""
    points = [(row["step"], float(row[key])) for row in rows if row.get(key) is not None]
    return [step for step, _ in points], [value for _, value in points]


def _lines(axes: Any, rows: Sequence[Row], keys: Sequence[str], title: str, scale: int = 1) -> bool:
    for color, key in zip(_COLORS, keys, strict=False):
        steps, values = _series(rows, key)
        if steps:
            axes.plot(steps, [scale * v for v in values], color=color, label=key, **_marks(steps))
    axes.set_title(title)
    return bool(axes.lines)


def _success(
    axes: Any, rows: Sequence[Row], keys: Sequence[str], evaluations: Sequence[tuple[int, Evaluation]]
) -> bool:
    _lines(axes, rows, [key for key in keys if key.split("/")[-1] == "success"], "success", scale=100)
    for number, (step, evaluation) in enumerate(evaluations):
        label = None if number else "held out, 95% interval"
        draw_interval(axes, step, evaluation, fmt="s", color=ORANGE, label=label)
    axes.set_ylim(-3, 103)
    axes.set_ylabel("%")
    return bool(axes.lines)


def _groups(axes: Any, rows: Sequence[Row]) -> bool:
    for key, color, label in (
        ("rollout/attempts", PALE, "states tried"),
        ("rollout/groups", BLUE, "groups of mixed outcome"),
    ):
        steps, values = _series(rows, key)
        _bars(axes, steps, values, [0.0] * len(steps), color=color, label=label)
    axes.set_title("groups that teach something")
    axes.locator_params(axis="y", integer=True)
    return bool(axes.patches or axes.collections)


def _time(axes: Any, rows: Sequence[Row], keys: Sequence[str]) -> bool:
    keys = [key for key in keys if key.startswith("time/") and key.endswith("_s")]
    phases = {key: [row.get(key) or 0.0 for row in rows] for key in keys if key != _TOTAL}
    spent = [sum(parts) for parts in zip(*phases.values(), strict=True)] or [0.0] * len(rows)
    rest = [max((row.get(_TOTAL) or 0.0) - known, 0.0) for row, known in zip(rows, spent, strict=True)]
    if sum(rest) > 0.02 * sum(spent):
        phases["time/other_s" if phases else _TOTAL] = rest
    bottom = [0.0] * len(rows)
    for number, (key, seconds) in enumerate(phases.items()):
        label = key.removeprefix("time/").removesuffix("_s")
        color = _COLORS[number % len(_COLORS)]
        _bars(axes, [row["step"] for row in rows], seconds, bottom, color=color, label=label)
        bottom = [b + s for b, s in zip(bottom, seconds, strict=True)]
    axes.set_ylabel("seconds")
    axes.set_title("time per iteration")
    return bool(axes.patches or axes.collections)


def _marks(steps: Sequence[int]) -> dict[str, Any]:
    return {"marker": "o", "markersize": 4} if len(steps) <= _MOST_BARS else {"linewidth": 1}


def _bars(
    axes: Any, steps: Sequence[int], heights: Sequence[float], bottom: Sequence[float], **style: Any
) -> None:
    """Draw a bar for each step; where they would be a few pixels wide, one area in their place."""
    if not steps:
        return
    if len(steps) <= _MOST_BARS:
        axes.bar(steps, heights, 0.7, bottom, **style)
    else:
        top = [b + h for b, h in zip(bottom, heights, strict=True)]
        axes.fill_between(steps, bottom, top, step="mid", linewidth=0, **style)

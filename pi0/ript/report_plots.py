"""The plots of a run."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
Evaluations = Mapping[str, Mapping[str, Any]]

_BLUE, _ORANGE, _GREEN, _GREY, _PALE = "#2f6fb0", "#e07b39", "#3a9a5b", "#6b7785", "#c3ccd5"
_PHASES = (_BLUE, _ORANGE, _GREEN, "#8a63b3", "#c44e52", "#4aa8b5", "#b59a3b", "#7a7a7a")
_TOTAL = "time/iteration_s"


def draw_plots(directory: Path, rows: Sequence[Row], evaluations: Evaluations) -> list[Path]:
    """Write DIRECTORY/{NAME}.png for each plot that there are data for, and return these files.

    Args:
        directory: Is made.
        rows: With "step", from `read_rows`.
        evaluations: What `Evaluation.to_dict` returned, by "before" and "after"; empty where there is none.
    """
    from matplotlib.figure import Figure  # takes seconds; and no pyplot, which would keep a global state
    from matplotlib.ticker import MaxNLocator

    directory.mkdir(parents=True, exist_ok=True)
    plots: dict[str, Callable[[Any], bool]] = {
        "success": lambda axes: _success(axes, rows, evaluations),
        "loss": lambda axes: _line(axes, rows, "train/loss", "training loss", _BLUE),
        "advantage": lambda axes: _line(
            axes, rows, "rollout/advantage_std", "spread of the advantages", _GREEN
        ),
        "groups": lambda axes: _groups(axes, rows),
        "time": lambda axes: _time(axes, rows),
    }
    drawn = []
    for name, plot in plots.items():
        figure = Figure(figsize=(6.4, 3.6), dpi=130, layout="constrained")
        axes = figure.add_subplot()
        if not plot(axes):
            continue
        axes.set_xlabel("iteration")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        low, high = axes.get_xlim()
        axes.set_xlim(low, max(high, low + 3))  # one iteration does not fill the plot
        axes.grid(axis="y", color="#e4e9ee")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
        drawn.append(directory / f"{name}.png")
        figure.savefig(drawn[-1])
    return drawn


def _series(rows: Sequence[Row], key: str) -> tuple[list[int], list[float]]:
    """Return steps and values of a key, where it has one."""
    points = [(row["step"], float(row[key])) for row in rows if row.get(key) is not None]
    return [step for step, _ in points], [value for _, value in points]


def _line(axes: Any, rows: Sequence[Row], key: str, title: str, color: str) -> bool:
    steps, values = _series(rows, key)
    axes.plot(steps, values, color=color, **_marks(steps))
    axes.set_title(title)
    return bool(steps)


def _success(axes: Any, rows: Sequence[Row], evaluations: Evaluations) -> bool:
    steps, values = _series(rows, "rollout/success")
    axes.plot(steps, [100 * v for v in values], color=_BLUE, label="rollouts", **_marks(steps))
    # The rollouts of an iteration are those of the policy before its update.
    places = {"before": 0, "after": max(steps, default=-1) + 1}
    shown = {name: e for name, e in evaluations.items() if e}
    for name, e in shown.items():
        rate = 100 * e["success_rate"]
        low, high = (100 * bound for bound in e["interval"])
        error = [[rate - low], [high - rate]]
        color = _GREY if name == "before" else _ORANGE
        axes.errorbar(
            places[name],
            rate,
            error,
            fmt="s",
            color=color,
            capsize=4,
            markersize=7,
            label=f"{name}, held out",
        )
    axes.set_ylim(-3, 103)
    axes.set_ylabel("%")
    axes.set_title("success")
    return bool(steps or shown)


def _groups(axes: Any, rows: Sequence[Row]) -> bool:
    for key, color, label in (
        ("rollout/attempts", _PALE, "states tried"),
        ("rollout/groups", _BLUE, "groups of\nmixed outcome"),
    ):
        steps, values = _series(rows, key)
        axes.bar(steps, values, _width(rows), color=color, label=label)
    axes.set_title("groups that teach something")
    axes.locator_params(axis="y", integer=True)
    return bool(axes.patches)


def _time(axes: Any, rows: Sequence[Row]) -> bool:
    keys = dict.fromkeys(k for row in rows for k in row if k.startswith("time/") and k.endswith("_s"))
    phases = {key: [row.get(key) or 0.0 for row in rows] for key in keys if key != _TOTAL}
    spent = [sum(parts) for parts in zip(*phases.values(), strict=True)] or [0.0] * len(rows)
    rest = [max((row.get(_TOTAL) or 0.0) - known, 0.0) for row, known in zip(rows, spent, strict=True)]
    if sum(rest) > 0.02 * sum(spent):
        phases["time/other_s" if phases else _TOTAL] = rest
    bottom = [0.0] * len(rows)
    for number, (key, seconds) in enumerate(phases.items()):
        label = key.removeprefix("time/").removesuffix("_s")
        color = _PHASES[number % len(_PHASES)]
        axes.bar([row["step"] for row in rows], seconds, _width(rows), bottom, color=color, label=label)
        bottom = [b + s for b, s in zip(bottom, seconds, strict=True)]
    axes.set_ylabel("seconds")
    axes.set_title("time per iteration")
    return bool(axes.patches)


def _marks(steps: Sequence[int]) -> dict[str, Any]:
    return {"marker": "o", "markersize": 4} if len(steps) <= 60 else {"linewidth": 1}


def _width(rows: Sequence[Row]) -> float:
    return 0.7 if len(rows) <= 60 else 1.0  # no gaps between bars of a few pixels

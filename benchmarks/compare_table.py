"""The tables and the figure of a comparison, made from the cells that are there."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compare_cells import Cell, Cells, from_plain, successes_per_minute

from pi0.ript.evaluate import Evaluation, compare
from pi0.ript.files import write_json, write_text
from pi0.ript.guidance import guidance_text
from pi0.ript.page import BLUE, GREEN, GREY, ORANGE, new_axes
from pi0.ript.success_table import mean_steps

_COLORS = (BLUE, ORANGE, GREEN, "#8a5fb0", GREY, "#b8860b")
LAST, CHOSEN = "last", "chosen"


@dataclass(frozen=True)
class Outcome:
    """What a method came to in one training run on one seed."""

    cell: Cell
    """The one of the round that was chosen."""
    rounds: Sequence[Mapping[str, Any]]
    """The cells of the rounds, in order."""
    choice: Mapping[str, Any]
    start: Mapping[str, Any]
    """The cell of the SFT policy."""

    def evaluation(self, which: str) -> Evaluation:
        """Return the held-out evaluation of the last round, or of the one that was chosen."""
        return from_plain(self._values(which))

    def figures(self, which: str) -> dict[str, Any]:
        """Return the figures of an evaluation."""
        evaluation = self.evaluation(which)
        return {
            "successes": evaluation.num_successes,
            "episodes": evaluation.num_episodes,
            "interval": list(evaluation.interval),
            "steps": evaluation.mean_steps_to_success,
            "successes_per_simulated_minute": successes_per_minute(self._values(which)),
        }

    def total(self, key: str) -> int:
        """Return the rollouts of all rounds, "made" or "learned_from"."""
        return sum(made["rollouts"][key] for made in self.rounds)

    @property
    def updates(self) -> int:
        """Return the updates of all rounds."""
        return sum(made["updates"] for made in self.rounds)

    @property
    def cpu_s(self) -> float:
        """Return the CPU seconds of all rounds, without the held-out evaluations."""
        parts = [made["measured"]["cpu_s"] for made in self.rounds]
        return sum(s for part in parts for name, s in part.items() if name != "evaluation")

    def _values(self, which: str) -> Mapping[str, Any]:
        return (self.choice if which == CHOSEN else self.rounds[-1])["evaluation"]


def read_outcomes(directory: Path, methods: Sequence[str] = ()) -> list[Outcome]:
    """Return what is finished, by seed and run; first these methods in their order, then others."""
    cells, outcomes = Cells(directory), []
    for file in directory.glob("seed*-chosen.json"):
        seed, run, method, _ = file.name.split("-")
        cell = Cell(int(seed.removeprefix("seed")), int(run.removeprefix("run")), method)
        numbers = range(1, 1 + len([*directory.glob(f"{seed}-{run}-{method}-round*.json")]))
        rounds = [cells.read(Cell(cell.seed, cell.run, method, number)) for number in numbers]
        outcomes.append(Outcome(cell, rounds, cells.read(cell), cells.read(Cell(cell.seed))))
    order = {name: place for place, name in enumerate(methods)}

    def place(outcome: Outcome) -> tuple[int, int, int, str]:
        cell = outcome.cell
        return cell.seed, cell.run, order.get(cell.method, len(order)), cell.method

    return sorted(outcomes, key=place)


def unfinished_methods(directory: Path) -> list[str]:
    """Return a line for each method of a seed and run that has rounds, but nothing chosen in the end."""
    begun: dict[str, int] = {}
    for file in directory.glob("seed*-round*.json"):
        name = file.name.rpartition("-")[0]
        if not (directory / f"{name}-chosen.json").exists():
            begun[name] = begun.get(name, 0) + 1
    return [f"Not in the tables: {name}, which has {count} rounds." for name, count in sorted(begun.items())]


def write_results(directory: Path, methods: Sequence[str]) -> str:
    """Write tables (table.md), all figures (summary.json) and success.png; return the tables.

    Args:
        directory: Of the cells of a task.
        methods: The first is compared with each other one that has finished cells.
    """
    outcomes, unfinished = read_outcomes(directory, methods), unfinished_methods(directory)
    if not outcomes:
        return "\n".join([f"{directory}: no method is finished on any seed", *unfinished])
    first = methods[0]
    pairs = [
        _pair(outcome, rival, which)
        for outcome in outcomes
        for rival in outcomes
        if outcome.cell.method == first != rival.cell.method
        and (outcome.cell.seed, outcome.cell.run) == (rival.cell.seed, rival.cell.run)
        for which in (LAST, CHOSEN)
    ]
    summary = _over_seeds(pairs)
    text = "\n\n".join(
        [
            _results_table(outcomes),
            *([_tasks_table(outcomes)] if len(outcomes[0].evaluation(LAST).by_task()) > 1 else []),
            *([_pairs_table(pairs), _summary_table(summary)] if pairs else []),
            *([_noise_table(outcomes)] if any(outcome.cell.run for outcome in outcomes) else []),
            _LEGEND,
            *unfinished,
        ]
    )
    rows = [
        {**asdict(o.cell), **{which: o.figures(which) for which in (LAST, CHOSEN)}, "cpu_s": o.cpu_s}
        for o in outcomes
    ]
    write_json(directory / "summary.json", {"methods": rows, "pairs": pairs, "over_seeds": summary})
    write_text(directory / "table.md", text + "\n")
    success_figure_of(outcomes).savefig(directory / "success.png")
    return text


_LEGEND = (
    "Brackets are 95% intervals: Wilson of a rate, Newcombe of a paired difference (percentage points); p is "
    "McNemar's exact one. They cover the states, not the training: see the differences between runs. Steps: "
    "mean of the successes. Per minute: successes in a minute of simulated time, failures included. "
    "Rollouts: made (learned from). Validation: episodes that the choice of round and guidance took. CPU "
    "s: without SFT and held-out evaluations."
)


def _results_table(outcomes: Sequence[Outcome]) -> str:
    header = (
        *("seed", "run", "method", "SFT", "by round", "last round", "steps", "per minute"),
        *("chosen", "round @ guidance", "steps", "rollouts", "updates", "validation", "CPU s"),
    )
    rows = []
    for outcome in outcomes:
        last, choice, cell = outcome.evaluation(LAST), outcome.choice, outcome.cell
        best = outcome.evaluation(CHOSEN)
        rows.append(
            (
                *(cell.seed, cell.run, cell.method, from_plain(outcome.start["evaluation"]).num_successes),
                " / ".join(str(made["evaluation"]["num_successes"]) for made in outcome.rounds),
                *(last, mean_steps(last), f"{outcome.figures(LAST)['successes_per_simulated_minute']:.1f}"),
                *(best, f"{choice['chosen_round']} @ {guidance_text(choice['guidance'])}", mean_steps(best)),
                f"{outcome.total('made')} ({outcome.total('learned_from')})",
                *(outcome.updates, choice["validation_episodes"], f"{outcome.cpu_s:.0f}"),
            )
        )
    return _markdown(header, rows)


def _tasks_table(outcomes: Sequence[Outcome]) -> str:
    """Return the success of each task, where there are several."""
    rows = [
        (o.cell.seed, o.cell.run, o.cell.method, task, last, o.evaluation(CHOSEN).by_task()[task])
        for o in outcomes
        for task, last in o.evaluation(LAST).by_task().items()
    ]
    return _markdown(("seed", "run", "method", "task", "last round", "chosen"), rows)


def _pair(outcome: Outcome, rival: Outcome, which: str) -> dict[str, Any]:
    """Return how a method differs from a rival on the same states, in points and steps."""
    mine, other = outcome.evaluation(which), rival.evaluation(which)
    change = compare(other, mine)
    steps = (mine.mean_steps_to_success, other.mean_steps_to_success)
    return {
        "method": outcome.cell.method,
        "rival": rival.cell.method,
        "seed": outcome.cell.seed,
        "run": outcome.cell.run,
        "of": which,
        "points": 100 * change.difference,
        "interval": [100 * bound for bound in change.interval],
        "won": change.num_won,
        "lost": change.num_lost,
        "p": change.p_value,
        "steps": None if steps[0] is None or steps[1] is None else steps[0] - steps[1],
        "as_text": str(change),
    }


def _pairs_table(pairs: Sequence[Mapping[str, Any]]) -> str:
    header = ("difference", "of", "seed", "run", "points [95%]", "won-lost", "p", "steps")
    rows = [
        (
            *(f"{p['method']} - {p['rival']}", p["of"], p["seed"], p["run"], p["as_text"]),
            *(f"{p['won']}-{p['lost']}", f"{p['p']:.2g}", _signed(p["steps"])),
        )
        for p in sorted(pairs, key=_pair_place)
    ]
    return _markdown(header, rows)


def _pair_place(pair: Mapping[str, Any]) -> tuple[str, bool, int, int]:
    return pair["rival"], pair["of"] == CHOSEN, pair["seed"], pair["run"]


def _over_seeds(pairs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return mean and range of the differences over seeds; a seed's runs count as their mean."""
    rows = []
    for rival, which in dict.fromkeys((p["rival"], p["of"]) for p in sorted(pairs, key=_pair_place)):
        these = [p for p in pairs if (p["rival"], p["of"]) == (rival, which)]
        row = {"method": these[0]["method"], "rival": rival, "of": which}
        for key in ("points", "steps"):
            seeds = sorted({p["seed"] for p in these if p[key] is not None})
            means = [
                statistics.mean(p[key] for p in these if p["seed"] == seed and p[key] is not None)
                for seed in seeds
            ]
            row[key] = (
                {"seeds": len(seeds), "mean": statistics.mean(means), "range": [min(means), max(means)]}
                if means
                else None
            )
        rows.append(row)
    return rows


def _summary_table(summary: Sequence[Mapping[str, Any]]) -> str:
    header = ("over seeds", "of", "seeds", "mean points", "range", "mean steps", "range")
    rows = []
    for row in summary:
        points, steps = row["points"], row["steps"]
        cells = [f"{points['mean']:+.1f}", _range(points["range"])]
        cells += [f"{steps['mean']:+.1f}", _range(steps["range"])] if steps else ["none", ""]
        rows.append((f"{row['method']} - {row['rival']}", row["of"], points["seeds"], *cells))
    return _markdown(header, rows)


def _noise_table(outcomes: Sequence[Outcome]) -> str:
    """Return how far runs of one seed are apart, which differ in training draws alone."""
    rows = []
    for method in dict.fromkeys(outcome.cell.method for outcome in outcomes):
        mine = [outcome for outcome in outcomes if outcome.cell.method == method]
        groups = [[o for o in mine if o.cell.seed == seed] for seed in {o.cell.seed for o in mine}]
        spreads = [_deviations(group) for group in groups if len(group) > 1]
        if spreads:
            last, best = (f"{statistics.mean(each):.1f}" for each in zip(*spreads, strict=True))
            rows.append((method, len(spreads), last, best))
    return _markdown(("between runs, standard deviation in points", "seeds", LAST, CHOSEN), rows)


def _deviations(runs: Sequence[Outcome]) -> list[float]:
    return [
        statistics.stdev([100 * run.evaluation(which).success_rate for run in runs])
        for which in (LAST, CHOSEN)
    ]


def success_figure_of(outcomes: Sequence[Outcome]) -> Any:
    """Return a figure of held-out success and steps by round: a line per run, a thick one of the mean."""
    figure, (success, steps) = new_axes(2, (4.6, 3.2), most_columns=2)
    for color, method in zip(_COLORS, dict.fromkeys(o.cell.method for o in outcomes), strict=False):
        mine = [outcome for outcome in outcomes if outcome.cell.method == method]
        curves = [
            [from_plain(made["evaluation"]) for made in [outcome.start, *outcome.rounds]] for outcome in mine
        ]
        rates = [[100 * e.success_rate for e in curve] for curve in curves]
        lengths = [[e.mean_steps_to_success for e in curve] for curve in curves]
        _draw(success, rates, color, method)
        _draw(steps, lengths, color, method)
    success.set_ylim(-4, 104)
    success.set_title("success on held-out states, %")
    steps.set_title("mean steps of successes")
    for axes in (success, steps):
        axes.set_xlabel("round (0: SFT); thin: a run, thick: mean")
        axes.xaxis.get_major_locator().set_params(integer=True)
    success.legend(fontsize=8, frameon=False)
    return figure


def _draw(axes: Any, curves: Sequence[Sequence[float | None]], color: str, label: str) -> None:
    for curve in curves:
        axes.plot(range(len(curve)), [_number(y) for y in curve], color=color, linewidth=0.7, alpha=0.5)
    columns = [[y for y in column if y is not None] for column in zip(*curves, strict=False)]
    means = [statistics.mean(column) if column else float("nan") for column in columns]
    axes.plot(range(len(means)), means, color=color, linewidth=2.2, label=label, marker="o", markersize=3)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _signed(value: float | None) -> str:
    return "none" if value is None else f"{value:+.1f}"


def _range(bounds: Sequence[float]) -> str:
    return f"{bounds[0]:+.1f} to {bounds[1]:+.1f}"


def _markdown(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)

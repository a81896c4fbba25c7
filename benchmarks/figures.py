"""What a benchmark found, as rows of one page: figure, ours, rival, ratio, limit, target, met or not.

A row has a value for each round, so that its spread is seen. What is judged is the median.
"""

import json
import statistics
from argparse import ArgumentParser
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Figure:
    """A figure of one benchmark; lists have a value for each round."""

    name: str
    unit: str
    ours: Sequence[float]
    rival: str = ""
    """What it is compared with; empty: nothing."""
    theirs: Sequence[float] = ()
    ratios: Sequence[float] = ()
    """What is compared, by round, where there is a rival."""
    limit: str = ""
    """The best that there can be, in words."""
    at_least: float | None = None
    """The target for the ratio, or, without a rival, for ours; None: there is none."""
    at_most: float | None = None

    @property
    def judged(self) -> Sequence[float]:
        """Return what the target is for."""
        return self.ratios if self.rival else self.ours

    @property
    def is_met(self) -> bool | None:
        """Return whether the median reaches the target; None: there is no target."""
        if self.at_least is None and self.at_most is None:
            return None
        middle = statistics.median(self.judged)
        return (self.at_least is None or middle >= self.at_least) and (
            self.at_most is None or middle <= self.at_most
        )


@dataclass
class Figures:
    """The rows of a benchmark."""

    rows: list[Figure] = field(default_factory=list)

    def add(
        self,
        name: str,
        unit: str,
        ours: Iterable[float],
        *,
        theirs: Iterable[float] = (),
        ratios: Iterable[float] | None = None,
        **options: Any,
    ) -> Figure:
        """Add a row and return it; options are the other fields of `Figure`.

        `ratios` that are not given are theirs over ours, by round: times faster where both are seconds.
        """
        values, rivals = [float(x) for x in ours], [float(x) for x in theirs]
        if ratios is None:
            ratios = [b / a for a, b in zip(values, rivals, strict=True)] if rivals else []
        row = Figure(name, unit, values, theirs=rivals, ratios=[float(x) for x in ratios], **options)
        self.rows.append(row)
        return row

    def write(self, path: Path | None) -> None:
        """Write the rows as JSON, if a file is given."""
        if path is not None:
            path.write_text(json.dumps([asdict(row) for row in self.rows], indent=1) + "\n")


def read_figures(path: Path) -> list[Figure]:
    """Return the rows that a benchmark wrote."""
    return [Figure(**row) for row in json.loads(path.read_text())]


def add_figures_option(parser: ArgumentParser) -> None:
    """Add --figures: where the rows go."""
    parser.add_argument("--figures", type=Path, metavar="FILE", help="also write rows for `make benchmark`")


def number(value: float) -> str:
    """Return a number with three digits that count."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(values: Sequence[float]) -> str:
    """Return median, minimum and maximum."""
    if not values:
        return ""
    if len(values) == 1:
        return number(values[0])
    return f"{number(statistics.median(values))} ({number(min(values))} to {number(max(values))})"


def target(figure: Figure) -> str:
    """Return the target in words."""
    least, most = figure.at_least, figure.at_most
    words = [f"at least {number(least)}"] if least is not None else []
    return ", ".join([*words, *([f"at most {number(most)}"] if most is not None else [])])


def markdown(rows: Sequence[Figure]) -> str:
    """Return the rows as a table in Markdown."""
    heads = ["figure", "ours", "rival", "theirs", "ratio", "limit", "target", "met"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        met = {True: "yes", False: "**no**", None: ""}[row.is_met]
        name = f"{row.name}, {row.unit}" if row.unit else row.name
        cells = [name, spread(row.ours), row.rival, spread(row.theirs), spread(row.ratios)]
        lines.append("| " + " | ".join([*cells, row.limit, target(row), met]) + " |")
    return "\n".join(lines)

"""What was found in the suites of a benchmark, beside the success that was published."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pi0.ript.evaluate import Evaluation
from pi0.ript.published import PublishedSuccess


@dataclass(frozen=True)
class SuiteRow:
    """What was found in a suite, beside a figure that was published."""

    suite: str
    evaluation: Evaluation
    published: PublishedSuccess | None = None
    """None: none is known."""
    agrees: bool | None = None
    """Does the figure lie in the 95% interval? None: it is of other settings, and not compared."""


def suite_rows(
    evaluations: Mapping[str, Evaluation], published: Sequence[PublishedSuccess], n_action_steps: int | None
) -> list[SuiteRow]:
    """Return a row per suite and published figure.

    Figures of another number of executed actions are shown where there are no others, and not compared. With
    None nothing is, because the evaluation was another: fewer tasks, other deadlines or images.
    """
    rows = []
    for suite, evaluation in evaluations.items():
        of_suite = [figure for figure in published if figure.suite == suite]
        comparable = [figure for figure in of_suite if figure.n_action_steps == n_action_steps]
        low, high = evaluation.interval
        rows += [SuiteRow(suite, evaluation, x, low <= x.success / 100 <= high) for x in comparable]
        if not comparable:
            rows += [SuiteRow(suite, evaluation, x) for x in of_suite or [None]]
    return rows


def suite_table(rows: Sequence[SuiteRow]) -> list[tuple[str, ...]]:
    """Return a header and the rows as texts."""
    lines: list[tuple[str, ...]] = [("suite", "success [95%]", "published", "in the interval", "source")]
    for row in rows:
        agrees = {True: "yes", False: "no", None: "other settings"}[row.agrees]
        figure = row.published
        beside = ("none is known", "", "") if figure is None else (str(figure), agrees, figure.source)
        lines.append((row.suite, str(row.evaluation), *beside))
    return lines


def suite_record(rows: Sequence[SuiteRow]) -> dict[str, Any]:
    """Return the rows as plain values for JSON, by suite."""
    record: dict[str, Any] = {}
    for row in rows:
        figures = {key: value for key, value in row.evaluation.to_dict().items() if key != "episodes"}
        of_suite = record.setdefault(row.suite, {**figures, "published": []})
        if row.published is not None:
            of_suite["published"].append({**asdict(row.published), "agrees": row.agrees})
    return record

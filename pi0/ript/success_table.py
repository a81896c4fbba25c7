"""The table of success: every policy on every task and on all of them, beside the first policy."""

from collections.abc import Mapping, Sequence

from pi0.ript.evaluate import Evaluation, compare


def success_rows(evaluations: Mapping[str, Evaluation]) -> list[tuple[str, ...]]:
    """Return the header, and a row per task and policy, in the end those of all tasks if there are several.

    Differences are those to the first policy, paired by initial state; a policy that was evaluated on other
    states has none. A column that would say nothing is left out: the task of several policies if there is
    but one, what compares policies if there is only one policy.
    """
    first = next(iter(evaluations), "")
    by_policy = {name: evaluation.by_task() for name, evaluation in evaluations.items()}
    tasks = list(dict.fromkeys(task for parts in by_policy.values() for task in parts))
    blocks = {task: {n: parts[task] for n, parts in by_policy.items() if task in parts} for task in tasks}
    if len(tasks) > 1:
        blocks["all"] = dict(evaluations)
    header = ("task", "policy", "success [95%]", f"points over {first} [95%]", "won-lost", "p", "steps")
    rows: list[tuple[str, ...]] = [header]
    for task, part in blocks.items():
        for name, evaluation in part.items():
            difference = ("", "", "") if name == first else _difference(part.get(first), evaluation)
            rows.append((task, name, str(evaluation), *difference, mean_steps(evaluation)))
    if len(evaluations) == 1:
        return [(task, success, steps) for task, _, success, *_, steps in rows]
    return rows if len(tasks) > 1 else [row[1:] for row in rows]


def success_legend(evaluations: Mapping[str, Evaluation]) -> str:
    """Return what the columns of the table mean, in a sentence."""
    paired = "points, won-lost and p (exact McNemar) are paired by initial state; "
    return f"brackets are 95% intervals; {paired if len(evaluations) > 1 else ''}steps: mean of the successes"


def success_text(evaluations: Mapping[str, Evaluation]) -> str:
    """Return the table as lines of text with a legend."""
    return f"{aligned(success_rows(evaluations))}\n{success_legend(evaluations)}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return a header and rows as lines of text, column under column."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _difference(first: Evaluation | None, other: Evaluation) -> tuple[str, str, str]:
    """Return the difference in points, the states won and lost, and the p-value."""
    if first is None or {e.state for e in first.episodes} != {e.state for e in other.episodes}:
        return "other states", "", ""
    change = compare(first, other)
    return str(change), f"{change.num_won}-{change.num_lost}", f"{change.p_value:.2g}"


def mean_steps(evaluation: Evaluation) -> str:
    """Return the mean steps of the successes as text."""
    mean = evaluation.mean_steps_to_success
    return "none" if mean is None else f"{mean:.1f}"

"""What a RECAP run came to: a table, and the results in one file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pi0.ript.evaluate import Evaluation, compare
from pi0.ript.files import FORMAT

_HEADER = ("policy", "held-out success", "since SFT, points", "steps to success")


def summary_table(evaluations: Mapping[str, Evaluation]) -> str:
    """Return a row per policy, the first of which is SFT, and per task if there are several."""
    first = next(iter(evaluations.values()))
    rows: list[tuple[str, ...]] = [_HEADER]
    for name, evaluation in evaluations.items():
        rows.append(_row(name, first, evaluation))
        tasks = evaluation.by_task()
        rows += [
            _row(f"  {task}", first.by_task()[task], one) for task, one in tasks.items() if len(tasks) > 1
        ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADER))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:], "brackets are 95% intervals"])


def summary(evaluations: Mapping[str, Evaluation]) -> dict[str, Any]:
    """Return every evaluation, and its comparison with the first, as plain values for JSON."""
    first = next(iter(evaluations.values()))
    return {
        name: {"evaluation": one.to_dict(), "since_sft": compare(first, one).to_dict()}
        for name, one in evaluations.items()
    }


def write_summary(run_dir: Path, config: Mapping[str, Any], evaluations: Mapping[str, Evaluation]) -> None:
    """Write results.json and print the table."""
    results = {"format": FORMAT, "config": config, "policies": summary(evaluations)}
    (run_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print(summary_table(evaluations))  # noqa: T201


def _row(name: str, first: Evaluation, evaluation: Evaluation) -> tuple[str, ...]:
    steps = evaluation.mean_steps_to_success
    gain = "" if evaluation is first or evaluation == first else str(compare(first, evaluation))
    return name, str(evaluation), gain, "none" if steps is None else f"{steps:.1f}"

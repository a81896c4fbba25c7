"""What a run leaves behind: its directory, evaluations with videos, and the results in one file."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pi0 import PI0Policy
from pi0.ript.evaluate import Evaluation, compare, table
from pi0.ript.files import FORMAT, unused_path
from pi0.ript.video import write_grid


def new_run_directory(path: str | Path) -> Path:
    """Make an empty directory and return it; what an earlier run left there moves to PATH.1, .2, ..."""
    path = Path(path)
    if path.exists() and any(path.iterdir()):
        older = unused_path(path)
        path.rename(older)
        print(f"the earlier run in {path} is now in {older}")  # noqa: T201
    path.mkdir(parents=True, exist_ok=True)
    return path


def one_line(row: Mapping[str, Any]) -> str:
    """Return a row of metrics as one line of text."""
    return "  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())


def write_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Write PATH.json, and PATH.mp4 with the recorded episodes, if there are any."""
    values = {"format": FORMAT, **evaluation.to_dict()}
    path.with_suffix(".json").write_text(json.dumps(values, indent=2) + "\n")
    if evaluation.recorded:
        write_grid(path.with_suffix(".mp4"), evaluation.recorded)


def write_results(
    run_dir: Path,
    config: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    before: Evaluation,
    after: Evaluation,
    policy: PI0Policy,
) -> None:
    """Write the improved policy, its evaluation and everything in figures (results.json); print the table."""
    policy.save_pretrained(run_dir / "policy")
    write_evaluation(run_dir / "after", after)
    results = {
        "format": FORMAT,
        "config": config,
        "metrics": metrics,
        "before": before.to_dict(),
        "after": after.to_dict(),
        "comparison": compare(before, after).to_dict(),
    }
    (run_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print(f"{table(before, after)}\nresults, videos and policy: {run_dir}")  # noqa: T201

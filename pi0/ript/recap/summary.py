"""What a RECAP run came to: a table, and the results in one file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pi0.ript.evaluate import Evaluation, compare
from pi0.ript.files import FORMAT, write_json
from pi0.ript.success_table import success_text


def write_summary(
    run_dir: Path, config: Mapping[str, Any], evaluations: Mapping[str, Evaluation], published: str
) -> None:
    """Write results.json, with the comparison of every policy to the first one, and print the table."""
    first = next(iter(evaluations.values()))
    policies = {
        name: {"evaluation": evaluation.to_dict(), "since_sft": compare(first, evaluation).to_dict()}
        for name, evaluation in evaluations.items()
    }
    write_json(
        run_dir / "results.json",
        {"format": FORMAT, "config": config, "policies": policies, "published": published},
    )
    print(f"{success_text(evaluations)}\npublished: {published}")  # noqa: T201

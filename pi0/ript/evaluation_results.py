"""What an evaluation of policies leaves behind: its directory, the page, the tables, a comparison."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pi0.ript.evaluate import Evaluation, compare
from pi0.ript.evaluation_settings import EvaluationConfig, split_of, trials
from pi0.ript.files import FORMAT, flatten, plain, write_json
from pi0.ript.guidance import write_choice
from pi0.ript.report import write_report
from pi0.ript.results import lock_directory, new_run_directory
from pi0.ript.success_table import aligned, success_text
from pi0.ript.suite_table import SuiteRow, suite_record, suite_table

EPISODES = "episodes"
"""In the directory of the results until they are complete: the finished episodes."""
_MAY_CHANGE = {
    *("eval.rollouts_per_task", "eval.first_state", "eval.n_video", "task.num_workers", "published"),
}
"""Settings that may have other values when an interrupted evaluation goes on."""


def open_output(config: EvaluationConfig) -> Path:
    """Return the directory of the results: that of this evaluation if it was interrupted, or a new one."""
    path, chosen = Path(config.output_dir), plain(config)
    lock_directory(path)
    file = path / "settings.json"
    is_begun, now = file.exists() and (path / EPISODES).exists(), flatten(chosen)
    earlier = flatten(json.loads(file.read_text())) if is_begun else {}
    earlier = flatten(plain(EvaluationConfig())) | earlier  # a setting that there was not yet
    changed = {key for key, value in now.items() if earlier.get(key, chosen) != value}
    if not is_begun or changed - _MAY_CHANGE:
        new_run_directory(path)
        (path / EPISODES).mkdir()
    write_json(file, chosen)
    return path


def write_tables(
    run_dir: Path,
    config: EvaluationConfig,
    evaluations: Sequence[Evaluation],
    suites: Mapping[str, Sequence[SuiteRow]],
) -> str:
    """Write the page of what is in the directory, and return the tables with what their names mean."""
    acted = trials(config)
    names = [trial.label for trial in acted]
    meaning = [f"{trial.label}: {trial.path}" for trial in acted]
    kinds = {"heldout": "held-out", "validation": "validation", "train": "training"}
    states = f"{kinds[split_of(config)]} states"
    legend, advice = "; ".join([*meaning, states]), ""
    if config.guidances is not None:
        legend = f"{config.policy_path} acts with each guidance; {states}"
        tried = {trial.guidance: e for trial, e in zip(acted, evaluations, strict=True)}
        advice = write_choice(run_dir / "choice.json", config.policy_path, split_of(config), tried)
    files = {trial.label: trial.file for trial in acted}
    tables = {f"Suites, {label}": suite_table(rows) for label, rows in suites.items()}
    if suites:
        record = {label: suite_record(rows) for label, rows in suites.items()}
        write_json(run_dir / "suites.json", {"format": FORMAT, **record})
    write_report(run_dir, files, "; ".join(filter(None, [legend, advice])), tables)
    text = success_text(dict(zip(names, evaluations, strict=True)))
    lines = [aligned(table) for table in tables.values()]
    return "\n".join(filter(None, [legend, text, advice, *lines]))


def comparison_record(config: EvaluationConfig, before: Evaluation, after: Evaluation) -> dict[str, Any]:
    """Return two policies' evaluations and what changed, in all and by task, as plain values for JSON."""
    tasks = {task: compare(part, after.by_task()[task]) for task, part in before.by_task().items()}
    return {
        "before": {"policy": config.policy_path, **before.to_dict()},
        "after": {"policy": config.compare, **after.to_dict()},
        "comparison": asdict(compare(before, after)),
        "tasks": {task: asdict(comparison) for task, comparison in tasks.items()},
    }

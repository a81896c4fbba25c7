"""What the files of a RECAP run say of its policies; they are read as data, without RECAP's own code."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pi0.ript.evaluation_conditions import Conditions, conditions
from pi0.ript.files import read_versioned_json
from pi0.ript.guidance import Guidance
from pi0.ript.origin.record import (
    Origin,
    Rows,
    present_evaluations,
    present_videos,
    shown_path,
)

_POLICY = re.compile(r"sft|(?:baseline-(?P<rival>[\w-]+)/)?(?:round-(?P<round>\d+)/)?policy")
_DATA = ("demonstrations", "rollouts")
_HASH_DIGITS = 12


def is_recap_policy(place: str) -> bool:
    """Return whether a place in a run's directory has a policy: published, SFT's, a round's, a rival's."""
    return bool(_POLICY.fullmatch(place))


def read_recap_policy(run: Path, place: str, settings: Mapping[str, Any]) -> Origin:
    """Return what is known of the policy at `place` in the run's directory."""
    stages, results = _stages(run), _results(run)
    names = {_label(stage): stage for stage in stages if _POLICY.fullmatch(stage)}
    chosen = names.get(results.get("published", "")) if place == "policy" else place
    judged = {name: _judgement(stage) for name, stage in names.items()}
    files = {
        name: f"{evaluation}/evaluation"
        for name, evaluation in judged.items()
        if evaluation in stages and _is_of(stages[evaluation], stages[names[name]])
    }
    evaluations = present_evaluations(run, files)
    label = _label(chosen) if chosen else None
    own = label if label in evaluations else None
    line = list(_line(chosen, stages)) if chosen else []
    published = ", which the run published" if place == "policy" else ""
    which = f"The policy of {label}{published}" if label else "The published policy"
    return Origin(
        method=f"{which} in the run {run.name} (algorithm: recap).",
        lineage=tuple(_named(stage, stages[stage]) for stage in line),
        data=tuple(_notes(settings, stages, line)),
        data_tables={"Data sets that it or what it comes from was trained on": _data(stages, line)},
        hub_datasets=_hub_datasets(settings),
        evaluations=evaluations,
        meanings={
            name: "imitation without advantages, guidance 1"
            if name != "SFT"
            else "before the rounds, guidance 1"
            for name in evaluations
            if name != own and not name.startswith("round ")
        },
        own=own,
        conditions=_conditions(stages[judged[own]], evaluations[own].seed, settings, own) if own else None,
        videos=present_videos(run, files),
        missing=() if chosen in stages else ("which stage of the run made this policy",),
    )


def _stages(run: Path) -> dict[str, Any]:
    file = run / "recap_state.json"
    return read_versioned_json(file)["stages"] if file.exists() else {}


def _results(run: Path) -> dict[str, Any]:
    file = run / "results.json"
    return read_versioned_json(file) if file.exists() else {}


def _label(stage: str) -> str:
    """Return what tables call the policy of a stage."""
    match = _POLICY.fullmatch(stage)
    if match is None:
        return stage
    name = f"round {match['round']}" if match["round"] else "SFT"
    if not match["rival"]:
        return name
    return f"{match['rival']}, {name}" if match["round"] else match["rival"].replace("-", " ")


def _judgement(stage: str) -> str:
    """Return the stage that evaluates the policy of a stage."""
    return "sft-evaluation" if stage == "sft" else f"{stage.removesuffix('policy')}evaluation"


def _is_of(evaluation: Mapping[str, Any], policy: Mapping[str, Any]) -> bool:
    """Return whether an evaluation is of the policy as it is, and not as it was with other settings."""
    return evaluation["inputs"]["policy"]["hash"] == policy["output"]["hash"]


def _line(stage: str, stages: Mapping[str, Any]) -> Iterator[str]:
    """Yield the stages of the policies that a policy comes from, its own first."""
    seen: set[str] = set()
    while stage in stages and stage not in seen:
        seen.add(stage)
        yield stage
        inputs = stages[stage].get("inputs") or {}
        stage = next((inputs[role]["stage"] for role in ("start", "sft") if role in inputs), "")


def _named(stage: str, record: Mapping[str, Any]) -> str:
    commit = (record.get("code") or {}).get("commit")
    code = f", made by commit {str(commit)[:_HASH_DIGITS]} of pi0-ript" if commit else ""
    return f"{_label(stage)} ({stage}, SHA-256 {record['output']['hash'][:_HASH_DIGITS]}...{code})"


def _data_stages(stages: Mapping[str, Any], line: Sequence[str]) -> list[str]:
    """Return the stages whose data sets the policies of a line were trained on, in the order of the run."""
    read = {source["stage"] for stage in line for source in (stages[stage].get("inputs") or {}).values()}
    return [name for name in stages if name in read and name.rpartition("/")[2] in _DATA]


def _notes(settings: Mapping[str, Any], stages: Mapping[str, Any], line: Sequence[str]) -> Iterator[str]:
    chosen = settings.get("demonstrations") or {}
    plan = ((stages.get("demonstrations") or {}).get("settings") or {}).get("plan")
    if plan:
        tasks = ", ".join(map(str, plan["tasks"]))
        yield f"Demonstrations of a scripted operator ({plan['operator']}) in {plan['env']}: {tasks}."
    elif chosen.get("repo_id") or chosen.get("root"):
        yield f"Demonstrations: {shown_path(str(chosen.get('repo_id') or chosen['root']))}."
    if chosen.get("allow_heldout"):
        yield "The run allowed demonstrations from held-out states (allow_heldout)."
    if any(name.endswith("rollouts") for name in _data_stages(stages, line)):
        yield "Rollouts of the run's own policies in simulation; each round has other training states."
    told = next((s["settings"]["reading"] for s in stages.values() if "reading" in s["settings"]), {})
    for instruction, task in (told.get("task_ids") or {}).items():
        yield f"Instruction of {task}: {instruction}"


def _data(stages: Mapping[str, Any], line: Sequence[str]) -> Rows:
    rows = []
    for name in _data_stages(stages, line):
        figures = stages[name].get("figures") or {}
        share = figures.get("success")
        shown = None if share is None else f"{share:.3f}"
        rows.append(
            [name, figures.get("episodes"), shown, f"{stages[name]['output']['hash'][:_HASH_DIGITS]}..."]
        )
    return [["data set", "episodes", "success", "SHA-256"], *rows]


def _hub_datasets(settings: Mapping[str, Any]) -> tuple[str, ...]:
    chosen = settings.get("demonstrations") or {}
    return (str(chosen["repo_id"]),) if chosen.get("repo_id") and not chosen.get("root") else ()


def _conditions(record: Mapping[str, Any], seed: int, settings: Mapping[str, Any], label: str) -> Conditions:
    judged = record["settings"]
    # SFT and rivals know no negative, so they act with 1; `guidance` is there where tasks have their own.
    guided: Guidance = judged["eval"]["cfg_guidance_scale"] if label.startswith("round ") else 1.0
    by_task = judged.get("guidance")
    return conditions(
        judged["task"],
        judged["eval"],
        seed,
        by_task or guided,
        judged.get("states", "heldout"),
        plugins=tuple(settings.get("plugins") or ()),
    )

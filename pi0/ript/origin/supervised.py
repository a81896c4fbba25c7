"""What the files of a run of pi0-train say of its policies."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pi0.ript.checkpoint.files import MANIFEST
from pi0.ript.evaluation_conditions import Conditions, conditions
from pi0.ript.files import read_versioned_json
from pi0.ript.origin.record import (
    CHECKPOINT,
    Origin,
    Rows,
    present_evaluations,
    present_videos,
    shown_path,
)
from pi0.ript.report import read_rows


def is_trained_policy(place: str) -> bool:
    """Return whether a place in a run's directory has a policy: the run itself, or a checkpoint."""
    return place == "." or bool(CHECKPOINT.fullmatch(place))


def read_trained_policy(run: Path, place: str, settings: Mapping[str, Any]) -> Origin:
    """Return what is known of the policy at `place` in the run's directory."""
    step = _step(run, place, settings)
    steps = sorted(int(path.stem.removeprefix("step-")) for path in run.glob("evaluations/step-*.json"))
    files = {
        f"step {number}": f"evaluations/step-{number}"
        for number in steps
        if step is not None and number <= step
    }
    evaluations = present_evaluations(run, files)
    own = f"step {step}" if f"step {step}" in evaluations else None
    mixture = settings["dataset_mixture"]
    sets = mixture.get("datasets") or []
    return Origin(
        method=_method(run, place, settings, step),
        data=_notes(settings),
        data_tables={"Data sets": _data_sets(sets, mixture.get("weights"))},
        hub_datasets=tuple(str(x["repo_id"]) for x in sets if x.get("repo_id") and not x.get("root")),
        evaluations=evaluations,
        own=own,
        conditions=_conditions(settings, evaluations[own].seed) if own else None,
        videos=present_videos(run, files),
        missing=() if step is not None else ("at which step of its run this policy was saved",),
    )


def _step(run: Path, place: str, settings: Mapping[str, Any]) -> int | None:
    """Return the step at which the policy was saved; None: no file says it."""
    manifest, match = run / place / MANIFEST, CHECKPOINT.fullmatch(place)
    if manifest.exists():  # a checkpoint, wherever it was copied to
        facts = read_versioned_json(manifest)
        return int(facts["step"] if "step" in facts else facts["position"][0])
    if match:
        return int(match[1])
    # A run that goes on with more steps has the model of its end before until it has made them.
    last, rows = settings["steps"], read_rows(run)
    signs = (run / f"checkpoint-{last}", run / f"evaluations/step-{last}.json")
    is_reached = any(sign.exists() for sign in signs) or bool(rows and rows[-1]["step"] == last)
    return last if is_reached else None


def _method(run: Path, place: str, settings: Mapping[str, Any], step: int | None) -> str:
    name, at = run.name, "the last one"
    if place != ".":
        at = place
    elif (run / MANIFEST).exists():
        name, at = shown_path(str(settings.get("exp_name") or name)), "a checkpoint"
    where = "a step that its files do not say" if step is None else f"step {step}, {at}"
    return f"The policy of the run {name} (supervised, pi0-train) at {where}."


def _notes(settings: Mapping[str, Any]) -> tuple[str, ...]:
    mixture, used = settings["dataset_mixture"], settings["policy"].get("advantage")
    notes = []
    if mixture.get("val_split_ratio") and settings.get("val_freq"):
        notes.append(f"Of each set, {mixture['val_split_ratio']} of the episodes were kept for validation.")
    if used:
        meaning = {"on": "every frame positive", "use": "as labelled", "ignore": "no indicator"}
        notes.append(f"Advantage of the frames: {meaning.get(used, used)}.")
    if mixture.get("allow_heldout"):
        notes.append("The run allowed data from held-out states (allow_heldout).")
    return tuple(notes)


def _data_sets(sets: Sequence[Mapping[str, Any]], weights: Sequence[Any] | None) -> Rows:
    rows = []
    for number, each in enumerate(sets):
        weight = weights[number] if weights else each.get("weight")
        episodes = "all" if each.get("episodes") is None else len(each["episodes"])
        name = shown_path(str(each.get("root") or each.get("repo_id")))
        rows.append([name, each.get("revision"), each.get("embodiment_tag"), episodes, weight])
    return [["data set", "revision", "robot", "episodes", "weight"], *rows]


def _conditions(settings: Mapping[str, Any], seed: int) -> Conditions | None:
    if "task" not in settings or "rollouts_per_task" not in settings["eval"]:
        return None  # of an early version, with other names
    judged = settings["eval"]
    plugins = tuple(settings.get("plugins") or ())
    return conditions(settings["task"], judged, seed, judged["cfg_guidance_scale"], plugins=plugins)

"""What the files of a run of the ladder (RIPT and the algorithms beside it) say of its policies."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pi0.ript.evaluation_conditions import conditions
from pi0.ript.files import read_versioned_json
from pi0.ript.origin.record import (
    CHECKPOINT,
    Origin,
    Rows,
    listed,
    present_evaluations,
    present_videos,
    starting_path,
)
from pi0.ript.policy_settings import TOY
from pi0.ript.report import read_rows

_COLUMNS = {
    "iteration": "iteration",
    "states tried": "rollout/attempts",
    "groups of mixed outcome": "rollout/groups",
    "success of the rollouts": "rollout/success",
    "training windows": "train/windows",
}


def is_ladder_policy(place: str) -> bool:
    """Return whether a place in a run's directory has a policy: the final one, or that of a checkpoint."""
    directory, _, name = place.partition("/")
    return place == "policy" or (name == "policy" and bool(CHECKPOINT.fullmatch(directory)))


def read_ladder_policy(run: Path, place: str, settings: Mapping[str, Any]) -> Origin:
    """Return what is known of the policy at `place` in the run's directory."""
    match, settings = CHECKPOINT.match(place), _made_with(run, place, settings)
    count = int(match[1]) if match else settings["training"]["num_train_steps"]
    files = {"before": "before"} if match else {"before": "before", "after": "after"}
    evaluations, judged = present_evaluations(run, files), settings["eval"]
    own = "after" if "after" in evaluations else None
    algorithm = settings["algo"].get("name", "ript")
    where = f"its {place.partition('/')[0]}" if match else f"{count} iterations"
    how = conditions(
        settings["task"],
        judged,
        evaluations[own].seed if own else 0,
        judged["cfg_guidance_scale"],
        plugins=tuple(settings.get("plugins") or ()),
    )
    return Origin(
        settings=settings,
        method=f"The policy of the run {run.name} (algorithm: {algorithm}) after {where}.",
        data=(
            "Rollouts of the policy itself in simulation, from training states.",
            *_demonstrations(settings),
        ),
        data_tables={"Rollouts by iteration": _iterations(run, count)},
        evaluations=evaluations,
        meanings={"before": "the policy that training began with, guidance 1"}
        if "before" in evaluations
        else {},
        own=own,
        conditions=how if own else None,
        videos=present_videos(run, files),
    )


def _made_with(run: Path, place: str, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings that a policy was made with.

    A run that goes on with more iterations has its new settings from the start, but until its end the final
    policy of the end before.
    """
    results = run / "results.json"
    if place != "policy" or not results.exists():
        return settings
    return read_versioned_json(results).get("config") or settings


def _demonstrations(settings: Mapping[str, Any]) -> tuple[str, ...]:
    if starting_path(settings) != TOY:
        return ()
    chosen = listed(settings["task"].get("warm_start") or {}) or "the environment's own settings"
    return (f"Before that, demonstrations of a scripted operator ({chosen}).",)


def _iterations(run: Path, count: int) -> Rows:
    results = run / "results.json"
    rows: Sequence[Mapping[str, Any]] = read_rows(run)
    if not rows and results.exists():  # rung 8 writes no others
        rows = read_versioned_json(results)["metrics"]
    shown = [row for row in rows if row["iteration"] < count]
    return [list(_COLUMNS), *([_cell(row.get(key)) for key in _COLUMNS.values()] for row in shown)]


def _cell(value: Any) -> Any:
    return f"{value:.3f}" if isinstance(value, float) else value

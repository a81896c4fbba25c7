"""What pi0-eval found of a policy, added to what is known of it."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pi0.errors import UnusableError
from pi0.ript.environments import FOUR_SUITES
from pi0.ript.evaluation_conditions import Conditions, conditions
from pi0.ript.origin.evaluation_files import SETTINGS, require_evaluation
from pi0.ript.origin.record import Origin, present_evaluations, present_videos, shown_path


def with_evaluation(origin: Origin, checkpoint: str | Path, directory: Path) -> Origin:
    """Return what is known with the results of pi0-eval in place of the run's own evaluations.

    Args:
        origin: What is known without them.
        checkpoint: The policy, as the command that exports it names it.
        directory: What pi0-eval wrote.

    Raises:
        UnusableError: It is no finished evaluation, or of other policies.
    """
    file = directory / SETTINGS
    require_evaluation(directory)
    try:
        settings = json.loads(file.read_text())
        paths = {"evaluation": settings["policy_path"], "compared": settings.get("compare")}
        mine = [name for name, path in paths.items() if path and _is_same(str(path), str(checkpoint))]
        if not mine:
            raise UnusableError(
                f"--evaluation: {directory} is of {', '.join(str(p) for p in paths.values() if p)}, not of "
                f"{checkpoint}; evaluate this policy: pi0-eval --policy {checkpoint} ..."
            )
        names = (
            {"evaluation": "before", "compared": "after"} if paths["compared"] else {"evaluation": "policy"}
        )
        files = {name: file for file, name in names.items()}
        evaluations, own = present_evaluations(directory, files), names[mine[-1]]
        return replace(
            origin,
            evaluations=evaluations,
            meanings={},  # those are of the run's evaluations
            own=own,
            conditions=_conditions(settings, evaluations[own].seed),
            videos=present_videos(directory, files),
            missing=(
                *origin.missing,
                *(
                    f"what {name} is, beyond its name {shown_path(str(paths[file]))}"
                    for file, name in names.items()
                    if name != own
                ),
            ),
        )
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise UnusableError(f"--evaluation: {file} is damaged ({type(error).__name__}: {error})") from error


def _is_same(one: str, other: str) -> bool:
    first, second = Path(one).expanduser(), Path(other).expanduser()
    return one == other or (first.exists() and second.exists() and first.samefile(second))


def _conditions(settings: Mapping[str, Any], seed: int) -> Conditions:
    judged, policy, task = settings["eval"], settings.get("policy") or {}, settings["task"]
    suites = FOUR_SUITES if settings.get("suites") == ["all"] else settings.get("suites")
    states = judged.get("states") or ("train" if judged.get("recording_root") else "heldout")
    options = settings.get("options") or {}
    found = conditions(
        task,
        judged,
        seed,
        judged["cfg_guidance_scale"],
        states,
        plugins=tuple(settings.get("plugins") or ()),
        n_action_steps=policy.get("n_action_steps"),
        embodiment=policy.get("embodiment"),
    )
    return replace(
        found,
        environments=tuple(suites) if suites else found.environments,
        options={**found.options, **options},
    )

"""The guidance that a policy acts with: for each task the one that succeeded most often on validation states.

How far to guide towards a positive advantage is no part of training, so it is chosen afterwards.
"""

from collections.abc import Mapping
from pathlib import Path

from pi0.pretrained import OWN_CONFIG
from pi0.ript.envs.initial_state import Split
from pi0.ript.evaluate import Evaluation
from pi0.ript.files import write_json
from pi0.tensor_files import read_json

Guidance = float | dict[str, float]
"""One for all tasks, or by task id."""


def choose_guidance(evaluations: Mapping[float, Evaluation], own: float | None = None) -> dict[str, float]:
    """Return the guidance of each task: that of most successes; of equal ones `own`, then the smallest.

    Args:
        evaluations: By guidance, all on the same validation states.
        own: What the policy would act with if nothing were chosen.
    """
    tasks = {guidance: evaluation.by_task() for guidance, evaluation in evaluations.items()}
    return {
        task: max(tasks, key=lambda g: (tasks[g][task].num_successes, g == own, -g))
        for task in next(iter(tasks.values()))
    }


def acting_with(evaluations: Mapping[float, Evaluation], chosen: Mapping[str, float]) -> Evaluation:
    """Return the evaluation of a policy that acts with a guidance in each task, without images."""
    any_of_them = next(iter(evaluations.values()))
    places = enumerate(episode.task for episode in any_of_them.episodes)
    return Evaluation(
        any_of_them.seed, tuple(evaluations[chosen[task]].episodes[place] for place, task in places)
    )


def in_short(chosen: Mapping[str, float]) -> Guidance:
    """Return one number where all tasks have the same guidance."""
    values = set(chosen.values())
    return values.pop() if len(values) == 1 else dict(chosen)


def guidance_text(guidance: Guidance) -> str:
    """Return a guidance as text."""
    if isinstance(guidance, dict):
        return ", ".join(f"{value:g} in {task}" for task, value in guidance.items())
    return f"{guidance:g}"


def record_guidance(policy: Path, guidance: Guidance) -> None:
    """Write into the configuration of a policy's directory what it acts with."""
    write_json(policy / OWN_CONFIG, {**read_json(policy / OWN_CONFIG), "guidance": guidance})


def recorded_guidance(policy: Path) -> Guidance | None:
    """Return what a policy's directory says that it acts with; None: nothing."""
    file = policy / OWN_CONFIG
    return read_json(file).get("guidance") if file.exists() else None


def write_choice(file: Path, policy: str, states: Split, evaluations: Mapping[float, Evaluation]) -> str:
    """Write which guidance a policy should act with and what that follows from; return it as text.

    Args:
        file: JSON.
        policy: The name of the policy.
        states: Where it was evaluated.
        evaluations: By guidance.
    """
    chosen = choose_guidance(evaluations)
    best, guidance = acting_with(evaluations, chosen), in_short(chosen)
    counts = {f"{guidance:g}": evaluation.to_dict() for guidance, evaluation in evaluations.items()}
    write_json(file, {"policy": policy, "states": states, "guidance": guidance, "evaluations": counts})
    text = f"to take: guidance {guidance_text(guidance)}, {best} (most successes; of equal ones the smallest)"
    if states == "heldout":
        text += "; chosen on held-out states, so this rate is too good to be reported"
    return text

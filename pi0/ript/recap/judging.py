"""How policies are judged, which one is published, and what a run leaves behind.

What is reported is measured on held-out states; what is chosen, the round and the guidance, is chosen on
validation states.
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace

from pi0.ript.config.schema import Eval
from pi0.ript.evaluate import Evaluation, compare
from pi0.ript.files import FORMAT, write_json
from pi0.ript.guidance import (
    Guidance,
    acting_with,
    choose_guidance,
    guidance_text,
    in_short,
    record_guidance,
)
from pi0.ript.recap.artefacts import EvaluationRecipe, guidance_of
from pi0.ript.recap.config import tried_guidances
from pi0.ript.recap.rounds import Run
from pi0.ript.recap.stages import Artefact, Kind, StageName
from pi0.ript.results import read_evaluation
from pi0.ript.success_table import success_text
from pi0.saving import copy_complete


def choose(run: Run, policy: Artefact, best: Artefact, improved: Artefact) -> tuple[Artefact, Artefact]:
    """Return what the next round builds on, and what is to be published so far, by validation states.

    Rollouts are made with the guidance of the settings, so a round is built upon by its success with that;
    what is published acts with the guidance that was chosen for it, and is chosen by its success with that.

    Args:
        run: Says how many states there are; with none, both are the newest policy.
        policy: What this round was built on.
        best: What was to be published before it.
        improved: What this round made.
    """
    if not run.config.validation.rollouts_per_task:
        return improved, improved
    new, before = (judge_on_validation(run, each) for each in (improved, policy))
    change = compare(before, new)
    is_worse = run.config.validation.discard_worse and change.interval[1] < 0
    chosen, most = (judge_as_chosen(run, each) for each in (improved, best))
    is_best = chosen.num_successes >= most.num_successes
    run.world.print(
        f"  validation: {new.num_successes}/{new.num_episodes}, {change} points against {policy.stage}: "
        f"{'worse, the next round starts from that one again' if is_worse else 'kept'}; "
        f"{_told(run, improved, chosen)}the best so far is {improved.stage if is_best else best.stage}"
    )
    return (policy if is_worse else improved), (improved if is_best else best)


def _told(run: Run, policy: Artefact, evaluation: Evaluation) -> str:
    if len(_tried(run, policy)) < 2:
        return ""
    guidance = guidance_text(guidance_on_validation(run, policy))
    return f"acts with guidance {guidance} ({evaluation.num_successes}/{evaluation.num_episodes}); "


def _tried(run: Run, policy: Artefact) -> list[float]:
    """Return the guidances that a policy is tried with: one, if it knows no negative."""
    return list(dict.fromkeys(guidance_of(policy, guidance) for guidance in tried_guidances(run.config)))


def validations(run: Run, policy: Artefact) -> dict[float, Evaluation]:
    """Return how the policy does on validation states with each guidance that it is tried with."""
    return {guidance: judge_on_validation(run, policy, guidance) for guidance in _tried(run, policy)}


def guidance_on_validation(run: Run, policy: Artefact) -> Guidance:
    """Return the guidance that the policy acts with, chosen on validation states if there is a choice."""
    own, *others = _tried(run, policy)
    return in_short(choose_guidance(validations(run, policy), own)) if others else own


def judge_as_chosen(run: Run, policy: Artefact) -> Evaluation:
    """Return how the policy does on validation states with the guidance that was chosen there."""
    found = validations(run, policy)
    return acting_with(found, choose_guidance(found, next(iter(found))))


def judge_on_validation(run: Run, policy: Artefact, guidance: float | None = None) -> Evaluation:
    """Return how the policy does on validation states; `guidance`: None is that of the settings."""
    settings = replace(run.config.eval, rollouts_per_task=run.config.validation.rollouts_per_task)
    settings = replace(settings, first_state=0, n_video=0)
    own = guidance_of(policy, settings.cfg_guidance_scale)
    name = replace(policy.stage, kind=Kind.VALIDATION)
    if guidance is not None and guidance != own:
        name = replace(name, guidance=guidance)
        settings = replace(settings, cfg_guidance_scale=guidance)
    return _evaluate(run, policy, name, settings)


def judge(run: Run, policy: Artefact, guidance: Guidance | None = None) -> Evaluation:
    """Return how the policy does on held-out states, acting with a guidance; None: the one that was chosen.

    The stage beside its own has the videos.
    """
    settings = run.config.eval
    guidance = guidance_on_validation(run, policy) if guidance is None else guidance
    name = replace(policy.stage, kind=Kind.EVALUATION)
    by_task = guidance if isinstance(guidance, dict) else None
    if not isinstance(guidance, dict) and policy.round:
        settings = replace(settings, cfg_guidance_scale=guidance)
    return _evaluate(run, policy, name, settings, by_task)


def _evaluate(
    run: Run, policy: Artefact, name: StageName, settings: Eval, guidance: dict[str, float] | None = None
) -> Evaluation:
    states = "heldout" if name.kind is Kind.EVALUATION else "validation"
    recipe = EvaluationRecipe(settings, run.config.task, run.config.rollouts.pool_size, states, guidance)
    artefact = run.make(name, recipe, policy=policy)
    return read_evaluation(artefact.path / "evaluation.json")


def publish_policy(run: Run, policy: Artefact, guidance: Guidance) -> None:
    """Copy a policy to the run's directory, in place of what was there, and write down its guidance."""
    path = run.stages.run_dir / "policy"
    partial_copy = path.with_suffix(".partial")
    shutil.rmtree(partial_copy, ignore_errors=True)
    copy_complete(policy.path, partial_copy)
    record_guidance(partial_copy, guidance)
    shutil.rmtree(path, ignore_errors=True)
    partial_copy.rename(path)
    print(f"published: {policy.stage}, guidance {guidance_text(guidance)}, in {path}")  # noqa: T201


def write_summary(
    run: Run, evaluations: Mapping[str, Evaluation], published: Artefact, guidance: Guidance
) -> None:
    """Write results.json, with the comparison of every policy to the first one, and print the table."""
    first = next(iter(evaluations.values()))
    policies = {
        name: {"evaluation": evaluation.to_dict(), "since_sft": asdict(compare(first, evaluation))}
        for name, evaluation in evaluations.items()
    }
    results = {
        "format": FORMAT,
        "config": asdict(run.config),
        "policies": policies,
        "published": published.label,
        "guidance": guidance,
    }
    write_json(run.stages.run_dir / "results.json", results)
    print(f"{success_text(evaluations)}\npublished: {published.label}, guidance {guidance_text(guidance)}")  # noqa: T201

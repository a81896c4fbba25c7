"""How policies are judged, which one is published, and what a run leaves behind.

What is reported is measured on held-out states; what is chosen is chosen on validation states.
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace

from pi0.ript.config.schema import Eval
from pi0.ript.evaluate import Evaluation, compare
from pi0.ript.files import FORMAT, write_json
from pi0.ript.recap.artefacts import EvaluationRecipe
from pi0.ript.recap.budget import tell_remaining
from pi0.ript.recap.rounds import Run
from pi0.ript.recap.stages import Artefact, Kind
from pi0.ript.results import read_evaluation
from pi0.ript.success_table import success_text
from pi0.saving import copy_complete


def choose(run: Run, policy: Artefact, best: Artefact, improved: Artefact) -> tuple[Artefact, Artefact]:
    """Return what the next round builds on, and what is to be published so far, by validation states.

    Args:
        run: Says how many states there are; with none, both are the newest policy.
        policy: What this round was built on.
        best: What was to be published before it.
        improved: What this round made.
    """
    if not run.config.validation.rollouts_per_task:
        return improved, improved
    new, before, most = (judge_on_validation(run, each) for each in (improved, policy, best))
    change = compare(before, new)
    is_worse = run.config.validation.discard_worse and change.interval[1] < 0
    is_best = new.num_successes >= most.num_successes
    run.world.print(
        f"  validation: {new.num_successes}/{new.num_episodes}, {change} points against {policy.stage}: "
        f"{'worse, the next round starts from that one again' if is_worse else 'kept'}; "
        f"the best so far is {improved.stage if is_best else best.stage}"
    )
    return (policy if is_worse else improved), (improved if is_best else best)


def judge_on_validation(run: Run, policy: Artefact) -> Evaluation:
    """Return how the policy does on validation states, with the guidance of the evaluation."""
    settings = replace(run.config.eval, rollouts_per_task=run.config.validation.rollouts_per_task)
    settings = replace(settings, first_state=0, n_video=0)
    return _evaluate(run, policy, Kind.VALIDATION, settings)


def judge(run: Run, policy: Artefact) -> Evaluation:
    """Return how the policy does on held-out states; the stage beside its own has the videos."""
    num_made = run.stages.num_made
    evaluation = _evaluate(run, policy, Kind.EVALUATION, run.config.eval)
    if run.stages.num_made > num_made:
        tell_remaining(run)
    return evaluation


def _evaluate(run: Run, policy: Artefact, kind: Kind, settings: Eval) -> Evaluation:
    states = "heldout" if kind is Kind.EVALUATION else "validation"
    recipe = EvaluationRecipe(settings, run.config.task, run.config.rollouts.pool_size, states)
    artefact = run.make(replace(policy.stage, kind=kind), recipe, policy=policy)
    return read_evaluation(artefact.path / "evaluation.json")


def publish_policy(run: Run, policy: Artefact) -> None:
    """Copy a policy to the run's directory, in place of what was there."""
    path = run.stages.run_dir / "policy"
    partial_copy = path.with_suffix(".partial")
    shutil.rmtree(partial_copy, ignore_errors=True)
    copy_complete(policy.path, partial_copy)
    shutil.rmtree(path, ignore_errors=True)
    partial_copy.rename(path)
    print(f"published: {policy.stage}, in {path}")  # noqa: T201


def write_summary(run: Run, evaluations: Mapping[str, Evaluation], published: Artefact) -> None:
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
    }
    write_json(run.stages.run_dir / "results.json", results)
    print(f"{success_text(evaluations)}\npublished: {published.label}")  # noqa: T201

"""The round to publish, and what the next one builds on, are chosen by validation states alone."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from pi0.ript.distributed import World
from pi0.ript.evaluate import EpisodeResult, Evaluation
from pi0.ript.recap import rounds
from pi0.ript.recap.config import RecapConfig
from pi0.ript.recap.judging import choose, judge
from pi0.ript.recap.stages import Artefact, Kind, StageName
from pi0.ript.results import write_evaluation

POLICIES = [Artefact(StageName(Kind.POLICY, number), Path(), str(number)) for number in range(4)]


def evaluation(successes: int | tuple[int, int], count: int = 50) -> Evaluation:
    """Episodes of task a, or of a and b."""
    counts = dict(zip("ab", (successes,) if isinstance(successes, int) else successes, strict=False))
    return Evaluation(
        0,
        tuple(
            EpisodeResult(task, f"{task}{i}", i < k, 9) for task, k in counts.items() for i in range(count)
        ),
    )


def choices(tmp_path: Path, validation: list, heldout: list[int], **settings) -> list[tuple[int, int]]:
    """Return (built on next, best so far) after each round, given successes by policy, or by guidance too."""
    return chosen(tmp_path, validation, heldout, **settings)[0]


def chosen(tmp_path: Path, validation: list, heldout: list[int], **settings) -> tuple[list, list]:
    """Return the choices, and with which guidance each round was judged on held-out states."""
    config, used = RecapConfig(), []
    for name, value in settings.items():
        setattr(config.validation, name, value)

    def make(name: StageName, recipe, policy: Artefact) -> Artefact:
        assert recipe.states == {Kind.VALIDATION: "validation", Kind.EVALUATION: "heldout"}[name.kind]
        guidance = recipe.guidance or recipe.eval.cfg_guidance_scale
        counts = heldout if name.kind is Kind.EVALUATION else validation
        place = tmp_path / str(name)
        place.mkdir(parents=True, exist_ok=True)
        count = counts[policy.round]
        write_evaluation(
            place / "evaluation", evaluation(count[guidance] if isinstance(count, dict) else count)
        )
        if name.kind is Kind.EVALUATION:
            used.append(guidance)
        return Artefact(name, place, "")

    run = object.__new__(rounds.Run)
    stages = SimpleNamespace(num_made=0)
    for name, value in {"config": config, "make": make, "world": World(), "stages": stages}.items():
        object.__setattr__(run, name, value)
    policy = best = POLICIES[0]
    found: list[tuple[int, int]] = []
    for improved in POLICIES[1:]:
        policy, best = choose(run, policy, best, improved)
        judge(run, improved)
        found.append((policy.round, best.round))
    return found, used


def test_the_best_on_validation_states_is_published_whatever_the_held_out_states_say(tmp_path):
    expected = [(1, 1), (2, 2), (3, 2)]
    assert choices(tmp_path / "a", [20, 30, 40, 38], heldout=[20, 30, 40, 50]) == expected
    assert choices(tmp_path / "b", [20, 30, 40, 38], heldout=[50, 0, 0, 0]) == expected


def test_a_round_that_is_clearly_worse_is_not_built_upon_unless_asked_for(tmp_path, capsys):
    successes = [20, 40, 10, 41]
    assert choices(tmp_path / "a", successes, successes) == [(1, 1), (1, 1), (3, 3)]
    assert "worse, the next round starts from that one again" in capsys.readouterr().out
    assert choices(tmp_path / "b", successes, successes, discard_worse=False) == [(1, 1), (2, 1), (3, 3)]


def test_without_validation_states_the_last_round_counts(tmp_path):
    assert choices(tmp_path, [9, 8, 7, 6], [9, 9, 9, 9], rollouts_per_task=0) == [(1, 1), (2, 2), (3, 3)]


def test_the_guidance_of_a_round_is_chosen_on_validation_states_whatever_the_held_out_states_say(
    tmp_path, capsys
):
    validation = [9, {3.0: 20, 1.0: 30}, {3.0: 28, 1.0: 20}, {3.0: 29, 1.0: 29}]
    for number, heldout in enumerate(([9, 8, 7, 6], [0, 50, 0, 50])):
        found, used = chosen(tmp_path / str(number), validation, heldout, guidances=[1.0])
        assert used == [1.0, 3.0, 3.0]  # of equal ones the own
        # Rollouts keep the guidance of the settings, so that round 2 is better than round 1 to build upon.
        assert found == [(1, 1), (2, 1), (3, 1)]
    assert "acts with guidance 1 (30/50); the best so far is round-1/policy" in capsys.readouterr().out


def test_every_task_has_a_guidance_of_its_own(tmp_path):
    validation = [
        (9, 9),
        {3.0: (20, 9), 1.0: (10, 19)},
        {3.0: (19, 19), 1.0: (19, 19)},
        {3.0: (1, 1), 1.0: (2, 2)},
    ]
    found, used = chosen(tmp_path, validation, [(9, 9)] * 4, guidances=[1.0], discard_worse=False)
    assert used == [{"a": 3.0, "b": 1.0}, 3.0, 1.0]
    assert found == [(1, 1), (2, 1), (3, 1)], "20 and 19 are more than 19 and 19"


def test_validation_states_are_neither_training_nor_held_out_states(metaworld):
    task = next(iter(metaworld.tasks))
    validation = metaworld.initial_states(task, "validation", range(2))
    assert [state.index for state in validation] == [500_000, 500_001]
    for split in ("train", "heldout"):
        assert not set(validation) & set(metaworld.initial_states(task, split, range(4)))
    with pytest.raises(ValueError, match="training states are those below 500000, found 500001"):
        metaworld.initial_states(task, "train", [500_001])


@pytest.mark.parametrize("success", [0.5, 0.0])
def test_filtered_imitation_makes_its_own_rollouts_after_the_first_and_rests_where_nothing_succeeded(success):
    """Round 2 has no success when the share is 0."""
    made: list[tuple[str, dict, dict]] = []

    def make(name: StageName, recipe, **inputs: Artefact) -> Artefact:
        made.append((str(name), vars(recipe), {role: str(a.stage) for role, a in inputs.items()}))
        return Artefact(name, Path(), str(name), {"success": success})

    run = object.__new__(rounds.Run)
    config = RecapConfig(filtered_rounds=3, seed=4)
    environment = SimpleNamespace(tasks=None, suite=lambda: SimpleNamespace(select=lambda _: []))
    parts = {"config": config, "make": make, "environment": environment, "demonstrations_root": None}
    for name, value in parts.items():
        object.__setattr__(run, name, value)
    first = Artefact(StageName(Kind.ROLLOUTS, 1), Path(), "r", {"success": 0.3})
    rivals = rounds.fit_rivals(run, POLICIES[0], [], first)
    assert list(rivals) == ["filtered, round 1", "filtered, round 2", "filtered, round 3"]
    names = [name.removeprefix("baseline-filtered/") for name, _, _ in made]
    if not success:
        assert names == ["round-1/policy", "round-2/rollouts", "round-3/rollouts"]
        assert rivals["filtered, round 3"] is rivals["filtered, round 1"]
        return
    assert names == ["round-1/policy", *(f"round-{n}/{x}" for n in (2, 3) for x in ("rollouts", "policy"))]
    assert made[0][2] == {"sft": "sft", "data": "round-1/rollouts"}, "SFT's rollouts are RECAP's too"
    assert made[1][1]["rollouts"].guidance == 1.0, "it knows no negative"
    assert made[2][2] == {
        "sft": "baseline-filtered/round-1/policy",
        "data": "baseline-filtered/round-2/rollouts",
    }
    assert all(recipe["is_of_successes"] for name, recipe, _ in made if name.endswith("policy"))
    assert {recipe["training"].steps for name, recipe, _ in made if name.endswith("policy")} == {300}
    assert rivals["filtered, round 2"].label == "filtered, round 2"

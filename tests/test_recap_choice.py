"""The round to publish, and what the next one builds on, are chosen by validation states alone."""

from pathlib import Path

import pytest

from pi0.ript.distributed import World
from pi0.ript.evaluate import EpisodeResult, Evaluation
from pi0.ript.recap import rounds
from pi0.ript.recap.config import RecapConfig
from pi0.ript.recap.judging import choose, judge
from pi0.ript.recap.stages import Artefact, Kind, StageName
from pi0.ript.results import write_evaluation

POLICIES = [Artefact(StageName(Kind.POLICY, number), Path(), str(number)) for number in range(4)]


def evaluation(successes: int, count: int = 50) -> Evaluation:
    return Evaluation(0, tuple(EpisodeResult("a", str(i), i < successes, 9) for i in range(count)))


def choices(tmp_path: Path, validation: list[int], heldout: list[int], **settings) -> list[tuple[int, int]]:
    """Return (built on next, best so far) after each round, given successes by policy."""
    config = RecapConfig()
    for name, value in settings.items():
        setattr(config.validation, name, value)

    def make(name: StageName, recipe, policy: Artefact) -> Artefact:
        assert recipe.states == {Kind.VALIDATION: "validation", Kind.EVALUATION: "heldout"}[name.kind]
        counts = validation if name.kind is Kind.VALIDATION else heldout
        place = tmp_path / str(name)
        place.mkdir(parents=True, exist_ok=True)
        write_evaluation(place / "evaluation", evaluation(counts[policy.round]))
        return Artefact(name, place, "")

    run = object.__new__(rounds.Run)
    for name, value in {"config": config, "make": make, "world": World()}.items():
        object.__setattr__(run, name, value)
    policy = best = POLICIES[0]
    found = []
    for improved in POLICIES[1:]:
        policy, best = choose(run, policy, best, improved)
        judge(run, improved)
        found.append((policy.round, best.round))
    return found


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


def test_validation_states_are_neither_training_nor_held_out_states(metaworld):
    task = next(iter(metaworld.tasks))
    validation = metaworld.initial_states(task, "validation", range(2))
    assert [state.index for state in validation] == [500_000, 500_001]
    for split in ("train", "heldout"):
        assert not set(validation) & set(metaworld.initial_states(task, split, range(4)))
    with pytest.raises(ValueError, match="training states are those below 500000, found 500001"):
        metaworld.initial_states(task, "train", [500_001])

"""The guidance of each task is chosen by successes alone, of equal ones the own and then the smallest."""

import json

import pytest

from pi0.ript.evaluate import EpisodeResult, Evaluation
from pi0.ript.evaluation_settings import parse_guidances
from pi0.ript.guidance import (
    acting_with,
    choose_guidance,
    guidance_text,
    in_short,
    record_guidance,
    recorded_guidance,
    write_choice,
)


def evaluation(**successes: int) -> Evaluation:
    """Ten episodes of each task, so many of which succeed."""
    return Evaluation(
        0,
        tuple(
            EpisodeResult(task, f"{task}{i}", i < count, 10 + count)
            for task, count in successes.items()
            for i in range(10)
        ),
    )


TRIED = {3.0: evaluation(push=4, pull=9), 1.0: evaluation(push=7, pull=9), 2.0: evaluation(push=7, pull=2)}


def test_each_task_has_the_guidance_that_succeeded_most_often():
    assert choose_guidance(TRIED) == {"push": 1.0, "pull": 1.0}
    chosen = choose_guidance(TRIED, own=3.0)
    assert chosen == {"push": 1.0, "pull": 3.0}
    assert choose_guidance(TRIED, own=2.0) == {"push": 2.0, "pull": 1.0}
    acting = acting_with(TRIED, chosen)
    assert [e.num_steps for e in acting.episodes] == [17] * 10 + [19] * 10
    assert [e.state for e in acting.episodes] == [e.state for e in TRIED[1.0].episodes]
    assert acting.by_task()["pull"] == TRIED[3.0].by_task()["pull"]


def test_one_number_says_it_where_all_tasks_have_the_same():
    assert in_short({"push": 1.0, "pull": 1.0}) == 1.0
    assert guidance_text(in_short({"push": 1.0, "pull": 2.5})) == "1 in push, 2.5 in pull"


def test_a_policy_says_what_it_acts_with(tmp_path):
    assert recorded_guidance(tmp_path) is None
    (tmp_path / "pi0_config.json").write_text('{"tokenizer": "t"}')
    assert recorded_guidance(tmp_path) is None
    record_guidance(tmp_path, {"push": 1.0, "pull": 2.0})
    assert json.loads((tmp_path / "pi0_config.json").read_text())["tokenizer"] == "t"
    assert recorded_guidance(tmp_path) == {"push": 1.0, "pull": 2.0}


def test_a_choice_on_held_out_states_says_so(tmp_path):
    text = write_choice(tmp_path / "choice.json", "p", "validation", TRIED)
    assert (
        text == "to take: guidance 1, 16/20 80.0% [58.4, 91.9] (most successes; of equal ones the smallest)"
    )
    assert "too good to be reported" in write_choice(tmp_path / "choice.json", "p", "heldout", TRIED)


def test_numbers_with_commas():
    assert parse_guidances("1,2.5,1") == [1.0, 2.5]
    for wrong in ("1,", "1,-2", "a,b", "1,inf", "nan,1"):
        with pytest.raises(ValueError, match="expected numbers of 0 or more with commas between them"):
            parse_guidances(wrong)

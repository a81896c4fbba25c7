"""Methods compared at equal rollouts and updates; a comparison that is killed comes to the same cells."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import compare
import pytest
from compare_cells import Cell, Cells, OtherCellsError, from_plain, successes_per_minute, to_plain
from compare_methods import METHODS
from compare_ript import groups_in
from compare_stages import Method, Round
from compare_table import write_results

from pi0.ript.config import ConfigError
from pi0.ript.distributed import World
from pi0.ript.evaluate import EpisodeResult, Evaluation
from pi0.ript.recap import RecapConfig, rounds
from pi0.ript.recap.stages import Artefact, Kind, StageName
from pi0.ript.results import write_evaluation

ROOT = Path(__file__).parent.parent
ROLLOUTS, UPDATES = 16, 3  # of a round, as in compare_runs


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """A whole comparison and one with kills, in a process of their own."""
    directory = tmp_path_factory.mktemp("compare")
    places = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    environment = os.environ | {"PYTHONPATH": places, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tests/compare_runs.py"), str(directory)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    return json.loads((directory / "outcome.json").read_text()) | {"directory": directory}


def cells_of(directory: Path) -> dict[str, dict]:
    """Return the cells by file, without what a clock and the repository say."""
    cells = {file.name: json.loads(file.read_text()) for file in directory.glob("results/demo/seed*.json")}
    return {name: {k: v for k, v in cell.items() if k != "measured"} for name, cell in cells.items()}


def test_a_comparison_that_was_killed_comes_to_the_same_cells(outcome):
    assert outcome["deaths"] == 7
    whole, killed = (cells_of(outcome["directory"] / which) for which in ("whole", "killed"))
    assert len(whole) == 1 + 3 * len(METHODS)
    assert killed == whole


def test_every_method_has_as_many_rollouts_and_updates_and_those_of_dropped_groups_count(outcome):
    cells = cells_of(outcome["directory"] / "whole")
    made = {
        f"{cell['method']}-round{cell['round']}": cell for name, cell in cells.items() if "-round" in name
    }
    counts = {name: count for name, count in outcome["counts"].items() if name}
    assert {name: cell["rollouts"]["made"] for name, cell in made.items()} == counts
    assert set(counts.values()) == {0, ROLLOUTS}
    assert {name for name, count in counts.items() if not count} == {"sft-round1", "sft-round2"}
    assert {cell["updates"] for cell in made.values()} == {UPDATES}
    assert any(made[f"ript-round{number}"]["rollouts"]["learned_from"] < ROLLOUTS for number in (1, 2)), (
        "no group was dropped, so that this test says nothing"
    )
    assert {cell["started_from"] for cell in made.values() if cell["round"] == 1} == {"SFT"}
    # SFT, and each round at every guidance that may be chosen: 1, 2, and RECAP's 3.
    spent = {name: cells[f"seed0-run0-{name}-chosen.json"]["validation_episodes"] for name in METHODS}
    assert spent == {"recap": 14, "ript": 10, "grpo": 6, "filtered": 6, "awr": 6, "sft": 6}


def evaluation(successes: int, count: int = 50, steps: int = 20) -> Evaluation:
    return Evaluation(0, tuple(EpisodeResult("a", str(i), i < successes, steps) for i in range(count)))


class Scripted(Method):
    """A method whose policies succeed as it is written."""

    is_guided = True

    def __init__(self, place: Path, validation: dict[tuple[int, float], int], heldout: dict[int, int]):
        self.place, self.validation, self.heldout = place, validation, heldout
        self.sft, self.stages = (
            Artefact(StageName(Kind.POLICY), Path(), "sft"),
            SimpleNamespace(figures=dict, num_made=0),
        )
        self.stages_apart: list = []
        self.run = self.judging_apart(2.0)

    def judging_apart(self, guidance: float) -> rounds.Run:
        config = RecapConfig(rounds=3)
        config.eval.cfg_guidance_scale, config.validation.guidances = 2.0, [1.0]

        def make(name: StageName, recipe, policy: Artefact) -> Artefact:
            counts = self.heldout[policy.round]
            if recipe.states == "validation":
                used = recipe.eval.cfg_guidance_scale if policy.round else 1.0
                counts = self.validation[policy.round, used]
            place = self.place / f"{guidance}-{name}"
            place.mkdir(parents=True, exist_ok=True)
            write_evaluation(place / "evaluation", evaluation(counts))
            return Artefact(name, place, "")

        run = object.__new__(rounds.Run)
        environment = SimpleNamespace(
            tasks=None,
            max_steps=None,
            suite=lambda: SimpleNamespace(select=lambda _: [SimpleNamespace(id="a", hz=10.0, max_steps=20)]),
        )
        parts = {"config": config, "make": make, "world": World(), "stages": self.stages}
        for name, value in (parts | {"environment": environment}).items():
            object.__setattr__(run, name, value)
        return run

    def improve(self, number: int, policy: Artefact) -> Round:
        made = Artefact(StageName(Kind.POLICY, number), Path(), f"policy-{number}", {"steps": 1})
        return Round(made, 8, 8, 0.5)


def choice(place: Path, validation, heldout) -> tuple[dict, list[str]]:
    """Return the cell of what was chosen, and what each round started from."""
    cells = Cells(place / "cells")
    cells.write(Cell(0), {"policy": "sft", "evaluation": to_plain(evaluation(heldout[0]), {"a": 10.0})}, {})
    comparison = compare.Comparison(RecapConfig(), [], [1.0, 2.0], 1, cells, place)
    compare.make_cells(comparison, Scripted(place, validation, heldout), Cell(0, 0, "recap"))
    starts = [cells.read(Cell(0, 0, "recap", number))["started_from"] for number in (1, 2, 3)]
    return cells.read(Cell(0, 0, "recap")), starts


def test_held_out_results_do_not_influence_the_choice(tmp_path):
    validation = {
        (0, 1.0): 10,
        (1, 2.0): 30,
        (1, 1.0): 31,
        (2, 2.0): 5,
        (2, 1.0): 40,
        (3, 2.0): 33,
        (3, 1.0): 20,
    }
    chosen_cells = []
    for number, heldout in enumerate(({0: 1, 1: 2, 2: 3, 3: 50}, {0: 50, 1: 40, 2: 9, 3: 0})):
        cell, starts = choice(tmp_path / str(number), validation, heldout)
        # Round 2 is worse than round 1 with the method's own guidance, so that round 3 starts from round 1.
        assert starts == ["SFT", "round 1", "round 1"]
        assert cell["evaluation"]["num_successes"] == heldout[2]
        assert cell["validation_episodes"] == 7 * 50
        chosen_cells.append((cell["chosen_round"], cell["guidance"]))
    assert chosen_cells == [(2, 1.0), (2, 1.0)]


def test_of_equal_ones_the_last_round_and_the_own_guidance_are_chosen(tmp_path):
    alike = dict.fromkeys([(0, 1.0), *((number, g) for number in (1, 2, 3) for g in (1.0, 2.0))], 9)
    heldout = dict.fromkeys(range(4), 9)
    cell, _ = choice(tmp_path / "alike", alike, heldout)
    assert (cell["chosen_round"], cell["guidance"]) == (3, 2.0)
    worse = {key: count - (key[0] > 0) for key, count in alike.items()}
    cell, _ = choice(tmp_path / "worse", worse, heldout)
    assert (cell["chosen_round"], cell["guidance"]) == (0, 1.0)


def test_a_cell_keeps_all_that_the_tables_need():
    before = evaluation(3, 5)
    kept = json.loads(json.dumps(to_plain(before, {"a": 10.0})))
    again = from_plain(kept)
    assert [(e.success, e.num_steps) for e in again.episodes] == [(e.success, 20) for e in before.episodes]
    assert successes_per_minute(kept) == pytest.approx(3 / (5 * 20 / 10 / 60))
    assert from_plain(to_plain(evaluation(3, 4), {"a": 10.0})).episodes[0].state != again.episodes[0].state


def test_cells_of_another_start_or_of_other_settings_are_refused(tmp_path):
    cells = Cells(tmp_path / "demo")
    cells.write(Cell(0), {"policy": "abc"}, {})
    cells.require_start(0, "abc")
    with pytest.raises(OtherCellsError, match=r"seed 0 start from SFT policy abc, this machine makes xyz"):
        cells.require_start(0, "xyz")
    cells.require_settings(RecapConfig(), {"guidances": [1.0]})
    cells.require_settings(RecapConfig(seed=4, output_dir="elsewhere"), {"guidances": [1.0]})
    with pytest.raises(OtherCellsError, match="rounds: made with 2, now 3"):
        cells.require_settings(RecapConfig(rounds=3), {"guidances": [1.0]})


def test_of_several_tasks_each_is_in_the_table(tmp_path):
    cells = Cells(tmp_path / "demo")
    episodes = tuple(EpisodeResult(task, task, task == "a", 9) for task in ("a", "b"))
    content = {"evaluation": to_plain(Evaluation(0, episodes), {"a": 10.0, "b": 10.0}), "policy": "p"}
    made = {"rollouts": {"made": 8, "learned_from": 6, "success": 0.5}, "updates": 3}
    cells.write(Cell(0), content, {})
    cells.write(Cell(0, 0, "recap", 1), {**content, **made}, {})
    choice = {"chosen_round": 1, "guidance": 3.0, "validation_episodes": 4}
    cells.write(Cell(0, 0, "recap"), {**content, **choice}, {})
    text = write_results(cells.directory, ["recap"])
    assert "| 0 | 0 | recap | a | 1/1 100.0% [20.7, 100.0] | 1/1" in text
    assert "| 0 | 0 | recap | b | 0/1 0.0% [0.0, 79.3] | 0/1" in text


def test_a_cell_is_committed_as_it_ends_and_nothing_else_with_it(tmp_path):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    for key in ("name", "email"):
        subprocess.run([*git, "config", f"user.{key}", "a"], check=True)
    (tmp_path / "other").write_text("staged by somebody")
    subprocess.run([*git, "add", "other"], check=True)
    cells = Cells(tmp_path / "demo", commits=True)
    for _ in range(2):  # the second time there is nothing new
        cells.write(Cell(0, 1, "recap", 2), {"policy": "abc"}, {"policy": 1.0})
    log = subprocess.run(
        [*git, "log", "--format=%s", "--name-only"], capture_output=True, text=True, check=True
    )
    assert log.stdout.split("\n\n") == [
        "Result: demo, seed0-run1-recap-round2",
        "demo/seed0-run1-recap-round2.json\n",
    ]


def test_rollouts_that_are_no_multiple_of_a_group_are_refused():
    config = RecapConfig()
    assert groups_in(config) == 32
    config.rollouts.num_states, config.rollouts.per_state = 10, 2
    with pytest.raises(ConfigError, match="10 states x 2 are 20 rollouts; expected a multiple of 8"):
        groups_in(config)


def test_the_table_has_paired_differences_and_their_mean_and_range_over_seeds(tmp_path):
    cells = Cells(tmp_path / "demo")
    successes = {("recap", 0): (40, 30), ("recap", 1): (30, 30), ("sft", 0): (20, 25), ("sft", 1): (25, 25)}
    for seed in (0, 1):
        cells.write(Cell(seed), {"policy": "p", "evaluation": to_plain(evaluation(10), {"a": 10.0})}, {})
    for (method, seed), (last, best) in successes.items():
        rollouts = {"made": 8, "learned_from": 6, "success": 0.5}
        shared = {"rollouts": rollouts, "updates": 3}
        for number, count in ((1, best), (2, last)):
            content = {"evaluation": to_plain(evaluation(count), {"a": 10.0}), **shared}
            cells.write(Cell(seed, 0, method, number), content, {"policy": 2.0, "evaluation": 9.0})
        content = {"evaluation": to_plain(evaluation(best), {"a": 10.0}), "chosen_round": 1, "guidance": 3.0}
        cells.write(Cell(seed, 0, method), {**content, "validation_episodes": 150}, {})
    text = write_results(cells.directory, ["recap", "sft"])
    assert "| 0 | 0 | recap | 10 | 30 / 40 | 40/50 80.0%" in text
    assert "| 1 @ 3 | 20.0 | 16 (12) | 6 | 150 | 4 |" in text
    assert "| recap - sft | last | 2 | +25.0 | +10.0 to +40.0 |" in text
    assert "| recap - sft | chosen | 2 | +10.0 | +10.0 to +10.0 |" in text
    pair = json.loads((cells.directory / "summary.json").read_text())["pairs"][0]
    assert (pair["of"], pair["won"], pair["lost"]) == ("last", 20, 0)
    assert pair["p"] == pytest.approx(2 / 2**20)
    assert pair["interval"][0] > 20
    cells.write(Cell(1, 0, "awr", 1), {"policy": "p"}, {})
    text = write_results(cells.directory, ["recap", "sft"])
    assert text.endswith("Not in the tables: seed1-run0-awr, which has 1 rounds.")
    assert (cells.directory / "success.png").stat().st_size > 10_000

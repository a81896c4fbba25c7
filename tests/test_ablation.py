"""An ablation changes one part of RECAP's recipe at a time, and nothing else."""

from argparse import ArgumentParser
from pathlib import Path
from types import SimpleNamespace

import compare
import numpy as np
import pytest
from compare_ablation import CHANGES, SETTINGS, SmallestLabels
from compare_methods import METHODS, Recap

from pi0.ript.config import ConfigError
from pi0.ript.distributed import World
from pi0.ript.files import flatten, plain
from pi0.ript.recap.artefacts import LabelsRecipe
from pi0.ript.recap.rounds import start_run
from pi0.ript.recap.stages import Artefact, Kind, StageName
from pi0.ript.recap.validation import validate_recap
from train_ript_pi0_final import fit


def comparison(tmp_path: Path, *words: str) -> compare.Comparison:
    parser = ArgumentParser()
    compare.add_arguments(parser)
    return compare._comparison(parser.parse_args([*words, "--results", str(tmp_path / "results")]), [])


def test_an_ablation_is_recap_and_every_change_in_two_rounds_on_states_of_its_own(tmp_path):
    made = comparison(tmp_path, "--ablation")
    assert made.methods == ["recap", *(f"recap_{part}" for part in CHANGES)]
    assert made.config.rounds == 2
    assert (made.config.eval.first_state, made.config.eval.rollouts_per_task) == (500, 200)
    assert made.cells.directory == tmp_path / "results/ablation"
    some = comparison(tmp_path, "--compare", "recap", "--change", "loss,share_0.8")
    assert some.methods == ["recap", "recap_loss", "recap_share_0.8"]
    with pytest.raises(ConfigError, match=r"--change: expected some of loss, .*ensemble3, found 'losses'"):
        comparison(tmp_path, "--change", "losses")
    assert all("-" not in f"recap_{part}" for part in CHANGES), "the files of the cells are split there"


@pytest.mark.parametrize("part", CHANGES)
def test_a_change_changes_what_it_names_alone(tmp_path, part):
    start = start_run(comparison(tmp_path, "--ablation").config, tmp_path / "start", World(), fit)
    sft = Artefact(StageName(Kind.POLICY), Path(), "sft")
    places = tmp_path / "a", 0, sft, sft
    changed, usual = (
        flatten(plain(method(start, *places).run.config)) for method in (CHANGES[part], METHODS["recap"])
    )
    assert {key: value for key, value in changed.items() if usual[key] != value} == SETTINGS.get(part, {})
    validate_recap(CHANGES[part](start, *places).run.config)
    assert issubclass(compare.method_of(f"recap_{part}"), Recap)


def test_the_smallest_of_three_values_is_that_of_each_frame(monkeypatch):
    numbers = {"a": [3.0, 1.0, 5.0], "b": [2.0, 4.0, 5.0], "c": [9.0, 0.0, 6.0]}
    monkeypatch.setattr(
        LabelsRecipe, "values", lambda _, inputs, *rest: [np.array(numbers[inputs["value"].hash])]
    )
    kinds = {"value": "a", "value-1": "b", "value-2": "c"}
    inputs = {role: Artefact(StageName(Kind.VALUE, 1), Path(), name) for role, name in kinds.items()}
    inputs["sft"] = Artefact(StageName(Kind.POLICY), Path(), "sft")
    recipe = object.__new__(SmallestLabels)
    (found,) = recipe.values(inputs, [], SimpleNamespace())
    assert found.tolist() == [2.0, 0.0, 5.0]

"""`pi0-advantage`: labels written into data sets, with the threshold, or one clear error."""

import json
import shutil
from dataclasses import asdict

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import opened, toy_policy
from test_recap_training import REWARD, chain

from pi0 import PI0Policy
from pi0.ript.commands.advantage import main, read_mixture
from pi0.ript.commands.dataset_viz import main as show
from pi0.ript.config import ConfigError
from pi0.ript.data.records import CollectionInfo
from pi0.ript.data.settings import DatasetSettings
from pi0.ript.data.writer import EpisodeWriter
from pi0.ript.labels.advantages import compute_advantages, read_advantages, read_lineage
from pi0.ript.labels.calibration import predict
from pi0.ript.labels.returns import outcomes
from pi0.value import ValueFunction
from pi0.value_config import expert_value_config


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A policy, a value function that reads it, and two data sets."""
    root = tmp_path_factory.mktemp("advantage")
    policy = toy_policy(indicator="embedding")
    policy.save_pretrained(root / "policy")
    value = ValueFunction(expert_value_config(policy, width=16), policy, seed=3)
    value.save_pretrained(root / "value")
    (root / "value/reward.json").write_text(json.dumps(asdict(REWARD)))
    for name, numbers in (("one", range(3)), ("two", range(5, 7))):
        writer = EpisodeWriter(root / name, CollectionInfo(20, "test", "image", {}))
        for i in numbers:
            writer.add(i, chain(i, 8 + i % 4, success=i % 3 > 0))
        writer.finalize()
    return root


def arguments(place, *datasets):
    return [f"--value={place / 'value'}", f"--policy={place / 'policy'}", *(str(place / d) for d in datasets)]


def test_every_frame_of_every_set_gets_the_advantage_of_its_value(place, capsys):
    assert main([*arguments(place, "one", "two"), "--positive-fraction=0.4"]) == 0
    printed = capsys.readouterr().out
    assert "  070th percentile: " in printed
    policy = PI0Policy.from_pretrained(place / "policy")
    value = ValueFunction.from_pretrained(place / "value", policy)
    everything = []
    for name in ("one", "two"):
        episodes = opened(place / name)
        ends = outcomes(episodes)
        expected = compute_advantages(predict(value, episodes), episodes.lengths.tolist(), ends, REWARD)
        found = read_advantages(place / name, episodes)
        np.testing.assert_allclose(found, expected, atol=2e-6)
        everything.append(found)
    lineage = read_lineage(place / "two")
    epsilon = lineage["epsilon"]["suite/0"]
    share = (np.concatenate(everything) > epsilon).mean()
    assert share == pytest.approx(0.4, abs=1 / len(np.concatenate(everything)))
    assert f"epsilon of suite/0: {epsilon:.6f}" in printed


def test_data_sets_come_from_a_mixture_too(place, tmp_path, capsys):
    file = tmp_path / "mixture.json"
    described = {"datasets": [{"repo_id": str(place / "one"), "episodes": [0]}, {"root": str(place / "two")}]}
    file.write_text(json.dumps(described))
    expected = [DatasetSettings(repo_id=str(place / "one")), DatasetSettings(root=str(place / "two"))]
    assert read_mixture(file) == expected
    assert "all episodes are labelled" in capsys.readouterr().out
    (tmp_path / "including.json").write_text('{"dataset_mixture": {"$ref": "mixture.json"}}')
    assert read_mixture(tmp_path / "including.json") == expected
    assert main([*arguments(place), f"--dataset_mixture={file}"]) == 0


def test_sets_with_other_column_names_and_without_labels_are_labelled_and_shown(place, tmp_path, capsys):
    """As somebody else's: a column `state`, and no word about success."""
    theirs = shutil.copytree(place / "one", tmp_path / "theirs")
    for path in [*(theirs / "data").rglob("*.parquet"), *(theirs / "meta/episodes").rglob("*.parquet")]:
        table = pq.read_table(path)
        table = table.drop_columns([name for name in ("success",) if name in table.column_names])
        names = ["state" if name == "observation.state" else name for name in table.column_names]
        pq.write_table(table.rename_columns(names), path)
    info = theirs / "meta/info.json"
    info.write_text(info.read_text().replace('"observation.state"', '"state"'))
    columns = {"observation.state": "state"}
    file = tmp_path / "mixture.json"
    described = {"root": str(theirs), "assume_success": True, "data_features_name_mapping": columns}
    file.write_text(json.dumps({"datasets": [described]}))
    assert main([*arguments(place), f"--dataset_mixture={file}"]) == 0, capsys.readouterr().err
    told = ["--columns", "observation.state=state", "--assume-success"]
    assert main([*arguments(place), str(theirs), *told]) == 0, capsys.readouterr().err
    page = tmp_path / "page.html"
    shown = [str(theirs), *told, "--output", str(page), "--max-episodes=1"]
    assert show(shown) == 0, capsys.readouterr().err
    assert page.exists()
    assert main([*arguments(place), str(theirs)]) == 2
    assert "with --columns observation.state=state" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("datasets", "changes", "said"),
    [
        ((), [], "expected data sets, or --dataset_mixture"),
        (("three",), [], "no LeRobotDataset: expected meta/info.json in"),
        (("one",), ["--policy=/nowhere/at/all"], "/nowhere/at/all"),
        (("one",), ["--value=/nowhere"], "/nowhere/reward.json is missing"),
        (("one",), ["--positive-fraction=2"], "positive_fraction: expected a share"),
        (("one",), ["--dataset_mixture=/nowhere.json"], "/nowhere.json"),
    ],
)
def test_wrong_input_is_one_error(place, capsys, datasets, changes, said):
    assert main([*arguments(place, *datasets), *changes]) == 2
    error = capsys.readouterr().err
    assert error.startswith("pi0-advantage: error: ")
    assert said in error


def test_a_value_function_that_reads_another_policy_is_refused(place, tmp_path, capsys):
    other = toy_policy(indicator="embedding")
    with torch.no_grad():
        next(iter(other.model.vlm.parameters())).add_(1.0)
    other.save_pretrained(tmp_path / "other")
    assert main([f"--value={place / 'value'}", f"--policy={tmp_path / 'other'}", str(place / "one")]) == 2
    assert "prefix weights have the hash" in capsys.readouterr().err


def test_an_empty_mixture_is_refused(tmp_path):
    file = tmp_path / "mixture.json"
    file.write_text("{}")
    with pytest.raises(ConfigError, match=r"mixture.json: dataset_mixture.datasets: expected at least one"):
        read_mixture(file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2]", "expected keys and values, found a list"),
        ('{"datasets": "mine"}', "datasets: expected"),
        ('{"datasets": [{"root": "x", "roots": "y"}]}', "unknown key 'roots'; did you mean 'root'"),
        ('{"datasets": [{"root": "x", "data_features_name_mapping": "y"}]}', "data_features_name_mapping"),
        ('{"datasets": [{"root": "x"}], "weigths": [1]}', "did you mean 'dataset_mixture.weights'"),
        ("{", "this is not YAML"),
    ],
)
def test_a_wrong_mixture_is_one_error(place, tmp_path, capsys, text, said):
    file = tmp_path / "mixture.json"
    file.write_text(text)
    assert main([*arguments(place), f"--dataset_mixture={file}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("pi0-advantage: error: ")
    assert said in error


def test_a_reward_that_cannot_be_read_is_named(place, tmp_path, capsys):
    (tmp_path / "reward.json").write_text("{")
    assert main([f"--value={tmp_path}", str(place / "one")]) == 2
    assert f"{tmp_path}/reward.json: expected the reward that pi0-train wrote" in capsys.readouterr().err

"""Statistics over mixtures: the merge formula, weighted quantiles, relative actions, the command."""

import json

import numpy as np
import pytest
import torch
from conftest import opened
from test_episodes import make_episode, publish

from pi0.features import ACTION, STATE
from pi0.normalize import compute_statistics
from pi0.ript.data.reader import open_set
from pi0.ript.data.settings import DatasetSettings
from pi0.ript.data.statistics import load_statistics, main, mixture_statistics, pooled_statistics


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    base = tmp_path_factory.mktemp("sets")
    return [
        str(publish(base / name, {i: make_episode(seed + i, length=4 + i) for i in range(3)}))
        for name, seed in (("a", 0), ("b", 50))
    ]


def samples() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(3, 1, (500, 2)), rng.normal(-5, 4, (200, 2)), rng.normal(100, 0.1, (31, 2))]


def test_weights_equal_to_the_shares_give_the_statistics_of_all_data_joined():
    parts = samples()
    joined = compute_statistics(np.concatenate(parts))
    for weights in (None, [500.0, 200.0, 31.0], [5.0, 2.0, 0.31]):
        pooled = pooled_statistics(parts, weights)
        assert pooled.keys() == joined.keys()
        for name, value in joined.items():
            torch.testing.assert_close(pooled[name], value, rtol=1e-6, atol=1e-6)


def test_moments_follow_the_merge_formula_and_quantiles_the_weighted_samples():
    parts, w = samples(), np.array([0.2, 0.5, 0.3])
    pooled = pooled_statistics(parts, w.tolist())
    means, variances = np.stack([x.mean(0) for x in parts]), np.stack([x.var(0) for x in parts])
    mean = (w[:, None] * means).sum(0)
    variance = (w[:, None] * (variances + means**2)).sum(0) - mean**2
    np.testing.assert_allclose(pooled["mean"], mean, rtol=1e-6)
    np.testing.assert_allclose(pooled["std"], np.sqrt(variance), rtol=1e-6)
    np.testing.assert_allclose(pooled["max"], np.concatenate(parts).max(0), rtol=1e-6)
    drawn = np.random.default_rng(1).choice(3, 50_000, p=w)
    rng = np.random.default_rng(2)
    simulated = np.array([parts[i][rng.integers(len(parts[i]))] for i in drawn])
    heaviest = 0.3 / 31  # a quantile lies within one sample
    for name in ("q01", "q99"):
        share = (simulated <= pooled[name].numpy()).mean(0)  # of the draws
        np.testing.assert_allclose(share, float(name[1:]) / 100, atol=heaviest + 0.001)


def test_a_set_without_weight_does_not_count():
    parts = samples()
    pooled, alone = pooled_statistics(parts, [1.0, 0.0, 0.0]), compute_statistics(parts[0])
    for name, value in alone.items():
        torch.testing.assert_close(pooled[name], value)


def test_relative_actions_are_those_the_policy_sees(roots):
    sets = [open_set(DatasetSettings(repo_id=root), cameras=()) for root in roots]
    rows = [frames.rows(frames.selected) for frames in sets]
    found = mixture_statistics(sets, rows, relative_actions=(True, False), chunk_size=3)
    expected = [
        episode.actions[t + h] - np.array([episode.states[t, 0], 0, 0], np.float32)
        for root in roots
        for episode in opened(root)
        for t in range(len(episode))
        for h in range(3)
        if t + h < len(episode)
    ]
    for name, value in compute_statistics(np.array(expected)).items():
        torch.testing.assert_close(found[ACTION][name], value, rtol=1e-5, atol=1e-5)


def test_the_command_writes_what_the_policy_loads(roots, tmp_path, capsys):
    path = tmp_path / "processor/statistics.json"
    assert main([*roots, "--output", str(path)]) == 0
    assert "30 frames of 2 data sets" in capsys.readouterr().out
    loaded = load_statistics(path)
    sets = [opened(root) for root in roots]
    for key, parts in {STATE: [s.states for s in sets], ACTION: [s.actions for s in sets]}.items():
        for name, value in compute_statistics(np.concatenate(parts)).items():
            torch.testing.assert_close(loaded[key][name], value)
    assert json.loads(path.read_text())["made_from"]["datasets"] == roots
    with pytest.raises(ValueError, match=r"relative_actions=\[True\], found \[\]"):
        load_statistics(path, [True])


def test_errors_are_clear(roots, tmp_path, capsys):
    assert main([str(tmp_path / "none"), "--output", str(tmp_path / "x.json")]) == 2
    assert "no LeRobotDataset" in capsys.readouterr().err
    assert main([*roots, "--output", str(tmp_path)]) == 2
    assert "--output: expected the name of a file, found the directory" in capsys.readouterr().err
    assert main([*roots, "--weights", "1", "--output", str(tmp_path / "x.json")]) == 2
    assert "expected one per data set (2), found 1" in capsys.readouterr().err
    assert main([*roots, "--relative-actions", *"11111", "--output", str(tmp_path / "x.json")]) == 2
    assert "--relative-actions: expected at most 3" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()
    with pytest.raises(ValueError, match="no file; make it: pi0-stats"):
        load_statistics(tmp_path / "x.json")

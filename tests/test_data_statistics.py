"""Statistics over mixtures: the merge formula, weighted quantiles, relative actions, the command."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import opened
from test_episodes import make_episode, publish

from pi0 import FeatureConfig
from pi0.features import ACTION, STATE
from pi0.normalize import compute_statistics
from pi0.ript.commands.stats import main
from pi0.ript.data.normalised import doubts, faults, normalised_dimensions, widened
from pi0.ript.data.reader import open_set
from pi0.ript.data.settings import DatasetSettings
from pi0.ript.data.statistics import mixture_statistics, pooled_statistics
from pi0.statistics_file import read_statistics_file
from pi0.tensor_files import CheckpointError


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
    file = read_statistics_file(path)
    loaded = file.statistics
    sets = [opened(root) for root in roots]
    for key, parts in {STATE: [s.states for s in sets], ACTION: [s.actions for s in sets]}.items():
        for name, value in compute_statistics(np.concatenate(parts)).items():
            torch.testing.assert_close(loaded[key][name], value)
    assert json.loads(path.read_text())["made_from"]["datasets"] == roots
    file.require_relative_actions([])
    file.require_relative_actions([False, False])
    with pytest.raises(
        CheckpointError, match=r"relative_actions=\[True\], found \[\].*--relative-actions 1$"
    ):
        file.require_relative_actions([True])


def test_the_command_takes_paths_below_the_home_directory(roots, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(roots[0], tmp_path / "set")
    assert main(["~/set", "--output", "~/statistics.json"]) == 0
    assert (tmp_path / "statistics.json").exists()


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
    with pytest.raises(CheckpointError, match="no file; make it: pi0-stats"):
        read_statistics_file(tmp_path / "x.json")
    (tmp_path / "x.json").write_text('{"mean": [1]}')
    with pytest.raises(CheckpointError, match=r"or 'norm_stats' of openpi, found \['mean'\]; make it"):
        read_statistics_file(tmp_path / "x.json")


def test_the_command_tells_of_quantiles_that_coincide(tmp_path, capsys):
    root = publish(tmp_path / "set", {0: with_gripper(make_episode(0, length=300))})
    assert main([str(root), "--output", str(tmp_path / "x.json")]) == 0
    assert "pi0-stats: warning: action: dimension 2: q01 and q99 are both -1" in capsys.readouterr().err


# Training data in a policy's units --------------------------------------------------------------------------

CAMERA = "observation.images.front"


def with_gripper(episode):
    """The last dimension of the action is -1, and in two frames 1."""
    actions = episode.actions.copy()
    actions[:, 2] = -1
    actions[[5, 100], 2] = 1
    return replace(episode, actions=actions)


def looked_at(root, statistics=None, **features):
    frames = open_set(DatasetSettings(root=str(root)), cameras=())
    says = FeatureConfig(image_keys=(CAMERA,), state_dim=4, action_dim=3, **features)
    rows, relative = [np.arange(frames.num_frames)], says.relative_actions
    numbers = statistics or mixture_statistics([frames], rows, relative_actions=relative, chunk_size=4)
    dimensions = normalised_dimensions(says, numbers, [frames], rows, chunk_size=4)
    return says, numbers, dimensions


@pytest.mark.parametrize("mode", ["mean_std", "quantiles", "min_max", "identity"])
@pytest.mark.parametrize("relative", [(), (True, True, False)])
def test_data_lie_well_by_their_own_statistics(roots, mode, relative):
    modes = {"state_normalization": mode, "action_normalization": mode}
    says, numbers, dimensions = looked_at(roots[0], **modes, relative_actions=relative)
    assert len(dimensions) == (0 if mode == "identity" else 7)
    assert faults(dimensions, says, numbers) == doubts(dimensions, says, numbers) == []


def test_a_dimension_that_hardly_moves_is_refused_by_name_or_widened(tmp_path):
    root = publish(tmp_path / "set", {0: with_gripper(make_episode(0, length=300))})
    with pytest.warns(UserWarning, match="q01 and q99 are both -1"):
        says, numbers, dimensions = looked_at(root, action_normalization="quantiles")
    (line,) = faults(dimensions, says, numbers)
    assert line == (
        f"{root}: action[2]: expected normalised values near 0, none beyond 100, found -1 to 4e+08: "
        "-1 to 1 by q01 -1 and q99 -1"
    )
    wide, lines = widened(numbers, says, dimensions)
    assert lines == ["action[2]: q01 -1 and q99 -1 widened to q01 -1 and q99 1"]
    assert torch.equal(wide["action"]["q99"][:2], numbers["action"]["q99"][:2]), "the others stay"
    _, _, after = looked_at(root, wide, action_normalization="quantiles")
    assert faults(after, says, wide) == []
    (gripper,) = (x for x in after if (x.feature, x.number) == ("action", 2))
    assert gripper.normalised == (-1.0, 1.0)
    says, numbers, dimensions = looked_at(root)
    assert faults(dimensions, says, numbers) == [], "mean and std bound it"


def test_statistics_of_other_values_are_refused_or_doubted(roots):
    says, numbers, _ = looked_at(roots[0])

    def by(**changes):
        """Return what is said where the action's statistics are others."""
        other = {**numbers, "action": {**numbers["action"], **changes}}
        _, _, dimensions = looked_at(roots[0], other)
        return faults(dimensions, says, other), doubts(dimensions, says, other), other, dimensions

    mean, std = numbers["action"]["mean"], numbers["action"]["std"]
    wrong, doubtful, other, dimensions = by(mean=mean + torch.tensor([0.0, 50.0, 0.0]))
    assert len(wrong) == 1
    assert "action[1]: expected normalised values near 0" in wrong[0]
    wide, _ = widened(other, says, dimensions)
    _, _, after = looked_at(roots[0], wide)
    assert max(abs(value) for x in after for value in x.normalised) == pytest.approx(10)
    wrong, doubtful, *_ = by(std=std / torch.tensor([1.0, 1.0, 5000.0]))
    assert "action[2]" in wrong[0]
    wrong, doubtful, *_ = by(mean=mean + 5 * std * torch.tensor([1.0, 0.0, 0.0]))
    assert wrong == []
    assert len(doubtful) == 1
    assert "action[0] is" in doubtful[0]
    wrong, doubtful, *_ = by(std=std * torch.tensor([1.0, 100.0, 1.0]))
    assert (len(wrong), len(doubtful)) == (0, 1)


def test_a_state_that_never_moves_is_told(tmp_path):
    episode = make_episode(0)
    states = episode.states.copy()
    states[:, 3] = 0.3
    root = publish(tmp_path / "set", {0: replace(episode, states=states)})
    says, numbers, dimensions = looked_at(root)
    (line,) = doubts(dimensions, says, numbers)
    assert line == f"{root}: observation.state[3] is always 0.3: the policy learns nothing of other values"

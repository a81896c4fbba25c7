"""Advantages in closed form, thresholds exact to one frame, and the file that OpenTau reads."""

import json
from pathlib import Path

import numpy as np
import pytest
from test_episodes import lerobot_dataset, make_episode, publish

from pi0.ript.episodes import EpisodeDataError, load_episodes
from pi0.ript.labels.advantages import (
    compute_advantages,
    coverage,
    is_positive,
    percentiles,
    read_advantages,
    read_lineage,
    threshold,
    thresholds,
    write_advantages,
)
from pi0.ript.labels.returns import Outcome, RewardConfig, frame_returns

SUCCESS, FAILURE = Outcome.SUCCESS, Outcome.FAILURE
NAN = float("nan")


def config(n: int) -> RewardConfig:
    return RewardConfig(C_neg=-6.0, reward_normalizer=10.0, N_steps_look_ahead=n)


def test_a_chain_in_closed_form():
    values = np.array([-0.5, -0.4, -0.2, -0.1, -0.8, -0.7])
    found = compute_advantages(values, [4, 2], [SUCCESS, FAILURE], config(2))
    expected = [
        -0.2 - 0.2 + 0.5,
        -0.2 - 0.1 + 0.4,
        -0.1 + 0.2,
        0.0 + 0.1,
        -0.7 + 0.8,
        -0.6 + 0.7,
    ]
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("n", [1, 3, 7, 8, 50])
def test_where_the_value_is_the_return_there_is_no_advantage(n):
    lengths, ends = [7, 1, 12], [SUCCESS, FAILURE, FAILURE]
    chosen = RewardConfig(C_neg=-20.0, N_steps_look_ahead=n).resolve(12)
    exact = frame_returns(lengths, ends, chosen)
    assert not compute_advantages(exact, lengths, ends, chosen).any()
    # One frame valued too low is an advantage there, and a disadvantage N frames before.
    low = exact.copy()
    low[8 + 11] -= 0.25
    found = compute_advantages(low, lengths, ends, chosen)
    expected = np.zeros(20)
    expected[19] += 0.25
    if n < 12:
        expected[19 - n] -= 0.25
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.305, 0.5, 1.0])
@pytest.mark.parametrize("n", [1, 10, 333])
def test_the_threshold_is_exact_to_one_frame(share, n):
    values = np.random.default_rng(0).normal(size=n)
    epsilon = threshold(values, share)
    assert (values > epsilon).sum() == (values >= epsilon).sum() == round(share * n)


def test_neighbouring_floats_are_told_apart():
    values = np.array([1.0, np.nextafter(1.0, 2.0)])
    assert (values > threshold(values, 0.5)).tolist() == [False, True]


def test_equal_advantages_get_one_label():
    values = np.array([0.0, 1.0, 1.0, 1.0, 2.0])
    for share, positive in [(0.2, 1), (0.4, 1), (0.6, 4), (0.8, 4), (1.0, 5)]:
        assert (values > threshold(values, share)).sum() == positive, share
    two = np.array([0.0, 1.0, 1.0, 2.0])
    assert (two > threshold(two, 0.5)).sum() == 1, "as near both ways: negative"
    assert (np.zeros(5) > threshold(np.zeros(5), 0.3)).sum() == 0


def test_each_task_has_its_share_or_all_have_one_threshold():
    easy, hard = np.linspace(0, 1, 10), np.linspace(-1, -0.5, 20)
    values, tasks = np.concatenate([easy, hard]), ["easy"] * 10 + ["hard"] * 20
    own = thresholds(values, tasks, 0.3, "per_task")
    positive = is_positive(values, tasks, own)
    assert (positive[:10].sum(), positive[10:].sum()) == (3, 6)
    one = thresholds(values, tasks, 0.3)
    assert len(set(one.values())) == 1
    positive = is_positive(values, tasks, one)
    assert (positive[:10].sum(), positive[10:].sum()) == (9, 0)
    with pytest.raises(ValueError, match="expected a threshold for \\['new'\\]"):
        is_positive(values[:1], ["new"], own)


def test_missing_advantages_do_not_count():
    values = np.array([NAN, 1.0, 2.0, NAN, 3.0, 4.0])
    assert coverage(values) == pytest.approx(4 / 6)
    assert (values > threshold(values, 0.5)).tolist() == [False, False, False, False, True, True]
    with pytest.raises(ValueError, match="no frame has one"):
        threshold(np.array([NAN]), 0.3)
    with pytest.raises(ValueError, match="positive_fraction"):
        threshold(values, 30.0)


def test_percentiles_are_printed_as_the_requirement_shows():
    lines = percentiles(np.linspace(-1, 0, 201)).splitlines()
    assert lines[0] == "Advantage percentiles for deciding epsilon threshold:"
    assert lines[1] == "  000th percentile: -1.000000"
    assert lines[15] == "  070th percentile: -0.300000"
    assert lines[21] == "  100th percentile: 0.000000"
    assert len(lines) == 22


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    episodes = {i: make_episode(i, length=3 + i) for i in range(3)}
    return publish(tmp_path_factory.mktemp("advantages") / "set", episodes)


@pytest.fixture
def labelled(dataset):
    """Directory, episodes and advantages of a data set, whose file is written."""
    episodes = load_episodes(dataset)
    advantages = np.round(np.random.default_rng(1).normal(size=12), 6)
    write_advantages(dataset, episodes, advantages, {"value": "abc", "epsilon": {"task": 0.25}})
    return dataset, episodes, advantages


def test_round_trip(labelled):
    directory, episodes, advantages = labelled
    assert np.array_equal(read_advantages(directory, episodes), advantages)
    lineage = read_lineage(directory)
    assert (lineage["value"], lineage["epsilon"]) == ("abc", {"task": 0.25})
    assert lineage["content_hash"] == episodes.collection["content_hash"]


def test_the_file_is_what_opentau_reads(labelled):
    """Its load_advantages: split at the comma, float of both; looked up by the item's own timestamp."""
    directory, _, advantages = labelled
    text = (directory / "meta/advantages.json").read_text()
    entries = json.loads(text)
    assert list(entries)[:3] == ["0,0.0", "0,0.05000000074505806", "0,0.10000000149011612"]
    assert text.startswith('{\n    "0,0.0": "')
    loaded = {(int(k.split(",")[0]), float(k.split(",")[1])): float(v) for k, v in entries.items()}
    frames = lerobot_dataset(directory)
    found = [loaded[int(item["episode_index"]), item["timestamp"].item()] for item in frames]
    assert found == advantages.tolist()


def test_the_bytes_are_those_of_opentaus_script_and_its_file_is_read(labelled):
    """Its script: two integers of a frame's columns as key, the advantage as text, json.dump(indent=4)."""
    directory, episodes, advantages = labelled
    advantages = np.append(advantages[:-1], -1e-9)  # printed as -0.000000
    path = write_advantages(directory, episodes, advantages, {})
    frames = lerobot_dataset(directory)
    keys = [f"{item['episode_index'].item()},{item['timestamp'].item()}" for item in frames]
    theirs = {key: f"{a:.6f}" for key, a in zip(keys, advantages.tolist(), strict=True)}
    assert path.read_bytes() == json.dumps(theirs, indent=4).encode()
    (directory / "meta/advantages_lineage.json").unlink()  # which it does not write
    shuffled = {key: theirs[key] for key in reversed(keys)}
    for made in (shuffled, {key: float(value) for key, value in shuffled.items()}):
        path.write_text(json.dumps(made, indent=4))
        np.testing.assert_array_equal(read_advantages(directory, episodes), advantages.round(6))


def test_their_file_is_read_and_a_missing_frame_is_an_error_unless_a_choice_is_made(dataset):
    episodes = load_episodes(dataset)
    entries = {f"{e},{float(np.float32(t / 20))}": "0.5" for e in range(3) for t in range(3 + e)}
    del entries["1,0.0"]
    (dataset / "meta/advantages_lineage.json").unlink(missing_ok=True)
    (dataset / "meta/advantages.json").write_text(json.dumps(entries))
    assert read_lineage(dataset) == {}
    with pytest.raises(EpisodeDataError, match="1 of 12 frames have no advantage"):
        read_advantages(dataset, episodes)
    for missing, value in [("positive", np.inf), ("negative", -np.inf), ("drop", NAN)]:
        found = read_advantages(dataset, episodes, missing)
        assert found[3] == value or (np.isnan(found[3]) and np.isnan(value))
        assert (np.delete(found, 3) == 0.5).all()


def test_a_file_of_other_episodes_is_refused(labelled):
    directory, episodes, advantages = labelled
    path = directory / "meta/advantages.json"
    path.write_text(path.read_text().replace(f"{advantages[0]:.6f}", "0.000000"))
    with pytest.raises(EpisodeDataError, match=r"stale.*file_hash"):
        read_advantages(directory, episodes)
    write_advantages(directory, episodes, advantages, {})
    other = load_episodes(directory)
    other.collection["content_hash"] = "0" * 64
    with pytest.raises(EpisodeDataError, match=r"stale.*content_hash"):
        read_advantages(directory, other)
    (directory / "meta/advantages_lineage.json").unlink()
    path.write_text(json.dumps({"0,0.0": "1", "7,0.0": "1"}))
    with pytest.raises(EpisodeDataError, match="1 of 2 entries are of no frame"):
        read_advantages(directory, episodes)
    path.unlink()
    with pytest.raises(EpisodeDataError, match="compute the advantages"):
        read_advantages(directory, episodes)


def test_a_missing_advantage_is_left_out_of_the_file(labelled):
    directory, episodes, advantages = labelled
    some = np.where(np.arange(12) == 4, NAN, advantages)
    write_advantages(directory, episodes, some, {})
    assert len(json.loads((directory / "meta/advantages.json").read_text())) == 11
    np.testing.assert_array_equal(read_advantages(directory, episodes, "drop"), some)
    with pytest.raises(ValueError, match="found infinite"):
        write_advantages(directory, episodes, np.full(12, np.inf), {})

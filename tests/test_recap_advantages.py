"""Advantages in closed form, thresholds exact to one frame, and the file that OpenTau reads."""

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from conftest import opened
from test_episodes import lerobot_dataset, make_episode, publish

from pi0.ript.data.frame_set import FrameSet
from pi0.ript.data.records import EpisodeDataError, EpisodeLabels
from pi0.ript.labels.advantages import (
    compute_advantages,
    coverage,
    fill_missing,
    is_positive,
    percentiles,
    read_advantages,
    read_lineage,
    smoothed,
    threshold,
    thresholds,
    write_advantages,
)
from pi0.ript.labels.calibration import Calibration
from pi0.ript.labels.frames import (
    FRAMES_FILE,
    THRESHOLDS_FILE,
    read_labelled_frames,
    read_positive,
    read_thresholds,
)
from pi0.ript.labels.labelling import label_frames, write_labelled_frames, write_labels
from pi0.ript.labels.returns import Outcome, frame_returns
from pi0.ript.labels.settings import Advantage, RewardConfig
from pi0.ript.labels.sources import Role, Source
from pi0.ript.pages.episode_figures import draw_episode
from pi0.ript.recap.config import Gates, RecapConfig
from pi0.ript.recap.gates import GateError, LabelFigures, check_gates

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


def test_a_mean_over_the_next_frames_in_closed_form():
    values = np.array([1.0, 0.0, 4.0, -2.0, NAN, 3.0])
    found = smoothed(values, [3, 1, 2], 0.5)
    expected = [(1 + 0.25 * 4) / 1.75, (0.5 * 4) / 1.5, 4.0, -2.0, NAN, 3.0]
    np.testing.assert_allclose(found, np.round(expected, 6))
    np.testing.assert_array_equal(smoothed(values[:4], [4], 1e-12), values[:4])


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
    episodes = opened(dataset)
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
    episodes = opened(dataset)
    entries = {f"{e},{float(np.float32(t / 20))}": "0.5" for e in range(3) for t in range(3 + e)}
    del entries["1,0.0"]
    (dataset / "meta/advantages_lineage.json").unlink(missing_ok=True)
    (dataset / "meta/advantages.json").write_text(json.dumps(entries))
    assert read_lineage(dataset) == {}
    advantages = read_advantages(dataset, episodes)
    assert np.isnan(advantages[3])
    with pytest.raises(EpisodeDataError, match="1 of 12 frames have no advantage"):
        fill_missing(advantages, "error", dataset)
    for choice, value in [("positive", np.inf), ("negative", -np.inf), ("drop", NAN)]:
        filled = fill_missing(advantages, choice, dataset)
        np.testing.assert_array_equal(filled[3], value)
        assert (np.delete(filled, 3) == 0.5).all()
    others = np.delete(np.arange(12), 3)
    assert (fill_missing(advantages, "error", dataset, others)[others] == 0.5).all(), "that frame is not used"
    with pytest.raises(EpisodeDataError, match="none of 1 frames has an advantage, so that no frame is left"):
        fill_missing(advantages, "drop", dataset, np.array([3]))


def test_a_file_of_other_episodes_is_refused(labelled):
    directory, episodes, advantages = labelled
    path = directory / "meta/advantages.json"
    path.write_text(path.read_text().replace(f"{advantages[0]:.6f}", "0.000000"))
    with pytest.raises(EpisodeDataError, match=r"stale.*file_hash"):
        read_advantages(directory, episodes)
    write_advantages(directory, episodes, advantages, {})
    other = opened(directory)
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
    np.testing.assert_array_equal(read_advantages(directory, episodes), some)
    with pytest.raises(ValueError, match="found infinite"):
        write_advantages(directory, episodes, np.full(12, np.inf), {})


# All sources together ---------------------------------------------------------------------------------------


@pytest.fixture
def sources():
    """Demonstrations of one task, and rollouts of two, whose values are noise."""
    from test_recap_training import chains

    demonstrations = replace(chains(0, 3), name="demonstrations", role=Role.DEMONSTRATIONS)
    rollouts = replace(chains(50, 6), role=Role.ROLLOUTS)
    rng = np.random.default_rng(0)
    return [demonstrations, rollouts], [rng.uniform(-1, 0, s.num_frames) for s in (demonstrations, rollouts)]


REWARD = RewardConfig(C_neg=-12.0, N_steps_look_ahead=4).resolve(12)


def test_the_share_asked_for_is_that_of_the_ranked_frames(sources):
    labels = label_frames(*sources, REWARD, Advantage(0.3, "global", "rollouts"))
    _, rollouts = labels.positive()
    assert rollouts.mean() == pytest.approx(0.3, abs=0.51 / len(rollouts))
    assert labels.figures()["positive_fraction"] == rollouts.mean()
    (epsilon,) = set(labels.epsilon.values())
    for positive, advantages in zip(labels.positive(), labels.advantages, strict=True):
        np.testing.assert_array_equal(positive, advantages > epsilon)
    everything = label_frames(*sources, REWARD, Advantage(0.3, "global", "all"))
    positive = np.concatenate(everything.positive())
    assert positive.mean() == pytest.approx(0.3, abs=0.51 / len(positive))
    figures = everything.figures()
    assert figures["positive_fraction"] == positive.mean()
    assert (figures["coverage"], figures["target_fraction"]) == (1.0, 0.3)
    assert f"epsilon of suite/0: {everything.epsilon['suite/0']:.6f}" in str(everything)


def test_demonstrations_that_are_always_positive_are_labelled_so(sources):
    (demonstrations, rollouts), values = sources
    always = [replace(demonstrations, advantage="on"), rollouts]
    figures = label_frames(always, values, REWARD, Advantage()).figures()
    assert figures["positive_share"]["demonstrations"] == 1.0


def test_under_the_default_recipe_no_frame_of_a_failure_is_positive(sources):
    settings = RecapConfig().advantage
    assert (settings.ranked, settings.positive_fraction) == ("successes", 0.6)
    labels = label_frames(*sources, REWARD, replace(settings, scope="global"))
    _, rollouts = sources[0]
    succeeded, (_, positive) = rollouts.is_success(), labels.positive()
    assert not succeeded.all()
    assert not positive[~succeeded].any()
    assert positive[succeeded].mean() == pytest.approx(0.6, abs=0.51 / succeeded.sum())
    assert labels.figures()["positive_fraction"] == positive[succeeded].mean()


def test_smoothing_changes_the_advantages_that_are_ranked_and_nothing_else(sources):
    settings = RecapConfig().advantage
    plain, other = (label_frames(*sources, REWARD, replace(settings, smoothing=s)) for s in (None, 0.9))
    for source, before, after in zip(plain.sources, plain.advantages, other.advantages, strict=True):
        np.testing.assert_array_equal(after, smoothed(before, source.frames.lengths.tolist(), 0.9))
        assert not np.array_equal(after, before)
    assert other.figures()["positive_fraction"] == pytest.approx(0.6, abs=0.02)


def test_a_task_without_success_has_no_positive_frame_and_the_others_have_their_share(sources, tmp_path):
    (demonstrations, rollouts), values = sources
    failed = [replace(x, success=x.success and x.task_id != "suite/0") for x in rollouts.frames.labels]
    rollouts = replace(rollouts, frames=replace(rollouts.frames, labels=tuple(failed)))
    labels = label_frames([demonstrations, rollouts], values, REWARD, RecapConfig().advantage)
    assert labels.epsilon["suite/0"] == np.inf
    of_task = np.array(rollouts.frame_tasks()) == "suite/1"
    positive = labels.positive()[1]
    assert not positive[~of_task].any()
    good = of_task & rollouts.is_success()
    assert positive[good].mean() == pytest.approx(0.6, abs=0.51 / good.sum())
    write_labelled_frames(labels, tmp_path)
    assert read_thresholds(tmp_path / "thresholds.json") == labels.epsilon
    stored = read_labelled_frames(tmp_path / "frames.npz")[rollouts.name]
    np.testing.assert_array_equal(stored.positive(labels.epsilon), positive)
    assert json.loads((tmp_path / "thresholds.json").read_text())["suite/0"] is None


def test_a_round_without_any_success_stops_at_the_gate(sources):
    (demonstrations, rollouts), values = sources
    failed = tuple(replace(labels, success=False) for labels in rollouts.frames.labels)
    rollouts = replace(rollouts, frames=replace(rollouts.frames, labels=failed))
    figures = label_frames([demonstrations, rollouts], values, REWARD, RecapConfig().advantage).figures()
    assert figures["positive_fraction"] is None
    chosen = LabelFigures(**{f.name: figures[f.name] for f in fields(LabelFigures)})
    with pytest.raises(GateError, match="positive fraction: none: no rollout succeeded"):
        check_gates(Calibration(9, 90, 0.9, 0.1, 0.1), chosen, Gates())


def test_frames_that_the_value_function_has_no_number_for_stop_at_the_gate(sources):
    both, (first, second) = sources
    second[7] = NAN
    figures = label_frames(both, [first, second], REWARD, Advantage()).figures()
    assert 0.9 < figures["coverage"] < 1.0
    chosen = LabelFigures(**{f.name: figures[f.name] for f in fields(LabelFigures)})
    good = Calibration(9, 90, correlation=0.9, calibration_error=0.1, error=0.1)
    with pytest.raises(GateError, match="label coverage"):
        check_gates(good, chosen, Gates(max_fraction_error=1.0))


def test_labels_are_written_beside_what_they_were_made_from(sources, tmp_path):
    labels = label_frames(*sources, REWARD, Advantage())
    places = [tmp_path / source.name for source in labels.sources]
    write_labels(labels, places, "abc")
    write_labelled_frames(labels, tmp_path)
    frames = read_labelled_frames(tmp_path / "frames.npz")
    assert read_thresholds(tmp_path / "thresholds.json") == labels.epsilon
    parts = zip(places, labels.sources, labels.advantages, labels.positive(), strict=True)
    for place, source, advantages, positive in parts:
        np.testing.assert_array_equal(read_advantages(place, source.frames), advantages)
        lineage = read_lineage(place)
        assert (lineage["value"], lineage["epsilon"]) == ("abc", labels.epsilon)
        np.testing.assert_array_equal(frames[source.name].positive(labels.epsilon), positive)
        np.testing.assert_array_equal(frames[source.name].returns, source.returns(REWARD))


def test_an_episode_of_two_instructions_has_two_thresholds(tmp_path):
    episodes = [
        replace(make_episode(i, length=6), labels=EpisodeLabels("open", success=True)) for i in range(2)
    ]
    frames = replace(
        FrameSet.in_memory(episodes, 20),
        instructions=("open", "close"),
        instruction_of=np.array([0, 0, 0, 1, 1, 1, *[0] * 6]),
    )
    source = Source("made elsewhere", frames, task_ids={"close": "suite/close"})
    values = np.random.default_rng(0).uniform(-1, 0, 12)
    labels = label_frames([source], [values], REWARD, Advantage(0.5, "per_task", "all"))
    assert list(labels.epsilon) == ["open", "suite/close"]
    (positive,) = labels.positive()
    assert positive[3:6].sum() in (1, 2), "a half of three frames"
    write_labelled_frames(labels, tmp_path)
    read = read_labelled_frames(tmp_path / "frames.npz")["made elsewhere"]
    assert read.tasks == (*["open"] * 3, *["suite/close"] * 3, *["open"] * 6)
    np.testing.assert_array_equal(read.positive(labels.epsilon), positive)
    figure = draw_episode(frames.episode(0), read.episode(0), labels.epsilon)
    (line,) = [line for line in figure.axes[-2].get_lines() if "epsilon" in str(line.get_label())]
    limits = [labels.epsilon[task] for task in read.tasks[:6]]
    assert line.get_ydata().tolist() == [*limits, limits[-1]]


def test_labels_of_an_earlier_version_are_read_by_the_tasks_of_the_data(sources, tmp_path):
    """They had neither labels nor tasks of frames, and perhaps a threshold for each task."""
    labels = label_frames(*sources, REWARD, Advantage(0.4, "per_task", ranked="all"))
    assert len(set(labels.epsilon.values())) > 1
    write_labelled_frames(labels, tmp_path)
    with np.load(tmp_path / FRAMES_FILE) as file:
        old = {key: file[key] for key in file if not key.endswith(("/tasks", "/positive"))}
    np.savez(tmp_path / FRAMES_FILE, **old)
    for positive, expected in zip(read_positive(tmp_path, sources[0]), labels.positive(), strict=True):
        assert positive.tolist() == expected.tolist()
    (tmp_path / THRESHOLDS_FILE).unlink()
    with pytest.raises(EpisodeDataError, match="expected labels or thresholds for the frames of demonstr"):
        read_positive(tmp_path, sources[0])

"""RECAP's two trainings, its gates and its data, on episodes whose value shows in the image."""

from dataclasses import asdict, replace

import drifting
import numpy as np
import pytest
import torch
from conftest import CAMERA, METAWORLD, TASKS, metaworld_policy, opened, toy_policy
from plugin_example.line import LineSuite

from pi0 import FeatureConfig, Indicator, PI0Policy
from pi0.embodiment import Embodiment
from pi0.normalize import MissingStatisticsError
from pi0.ript.data.cache import ImageCache
from pi0.ript.data.frame_set import FrameSet
from pi0.ript.data.records import CollectionInfo, Episode, EpisodeDataError, EpisodeLabels
from pi0.ript.data.statistics import mixture_statistics
from pi0.ript.data.writer import EpisodeWriter
from pi0.ript.distributed import World
from pi0.ript.environments import get_environment
from pi0.ript.envs import BatchedEnv, InitialState
from pi0.ript.labels.advantages import is_positive, thresholds
from pi0.ript.labels.calibration import (
    Calibration,
    calibration,
    heldout_calibration,
    heldout_episodes,
    predict,
)
from pi0.ript.labels.concordance import Concordance
from pi0.ript.labels.indicators import awr_weights, indicators, withhold_keyed
from pi0.ript.labels.mixture import Mixture
from pi0.ript.labels.returns import Outcome
from pi0.ript.labels.settings import RewardConfig
from pi0.ript.labels.sources import Source
from pi0.ript.loss import window_draws
from pi0.ript.recap import trainings
from pi0.ript.recap.config import Gates, RecapPolicy
from pi0.ript.recap.data import Reading
from pi0.ript.recap.gates import GateError, LabelFigures, check_gates
from pi0.ript.recap.objectives import policy_objective, value_objective
from pi0.ript.recap.snapshot_plan import SnapshotPlan
from pi0.ript.recap.trainings import SupervisedRecipe
from pi0.ript.recap.workshop import Workshop
from pi0.ript.recording import DatasetStore, record_rollouts, rollout_episode
from pi0.ript.rollout import GuidedPolicy, rollout
from pi0.ript.training.settings import PolicyTraining, ValueTraining
from pi0.value import ValueFunction
from pi0.value_config import expert_value_config
from train_ript_pi0_final import fit

FEATURES = FeatureConfig(image_keys=(CAMERA,), state_dim=4, action_dim=3)
SUCCESS, FAILURE = Outcome.SUCCESS, Outcome.FAILURE
GOOD = Calibration(
    num_episodes=9,
    num_frames=90,
    correlation=0.8,
    calibration_error=0.1,
    error=0.1,
    order=Concordance(0.9, 0.95, p_value=0.001),
)
LABELS = LabelFigures(coverage=1.0, positive_fraction=0.3, target_fraction=0.3)


def chain(number: int, length: int, success: bool) -> Episode:
    """An episode whose image shows how far it is (brightness) and how it will end (left half)."""
    images = np.zeros((length, 16, 16, 3), np.uint8)
    images[:] = (np.arange(length) * 255 // 12).astype(np.uint8)[:, None, None, None]
    images[:, :, :8] = 255 if success else 0
    rng = np.random.default_rng(number)
    return Episode(
        images={"front": images},
        states=rng.normal(size=(length, 4)).astype(np.float32),
        actions=np.arange(3 * length, dtype=np.float32).reshape(length, 3),
        labels=EpisodeLabels(TASKS[number % 2], success, task_id=f"suite/{number % 2}", seed=number),
    )


def chains(first: int, count: int) -> Source:
    made = [chain(first + i, 8 + i % 4, success=i % 3 > 0) for i in range(count)]
    return Source(f"rollouts-{first}", FrameSet.in_memory(made, fps=20))


REWARD = RewardConfig(C_neg=-12.0, N_steps_look_ahead=4).resolve(12)


def train_policy(policy, sources, advantages, epsilon, settings, seed=(0,), uncond_weight=None) -> list[dict]:
    positive = [
        is_positive(of_frames, source.frame_tasks()[: len(of_frames)], epsilon or EPSILON)
        for source, of_frames in zip(sources, advantages, strict=True)
    ]
    parts = policy_objective(policy, sources, advantages, positive, settings, uncond_weight)
    return fit(*parts, settings, seed, SnapshotPlan(), World())


def train_value(value, sources, reward, settings, seed=(0,)) -> tuple[list[dict], Calibration]:
    heldout = [heldout_episodes(source, settings.validation_fraction, seed) for source in sources]
    rows = fit(*value_objective(value, sources, reward, heldout), settings, seed, SnapshotPlan(), World())
    return rows, heldout_calibration(value, sources, reward, heldout)


# Data -------------------------------------------------------------------------------------------------------


def test_a_mixture_draws_uniformly_and_only_what_is_usable():
    sources = [chains(0, 4), chains(50, 6)]
    n, m = (source.num_frames for source in sources)
    usable = [np.arange(n) % 2 == 0, np.ones(m, bool)]
    mixture = Mixture(sources, FEATURES, 6, usable)
    drawn = mixture.draw(4000, (7, 1))
    first = drawn < n
    assert first.mean() == pytest.approx(n / (n + 2 * m), abs=0.03)
    assert set(drawn[first]) == set(range(0, n, 2)), "uniform over the usable ones, none left out"
    assert set(drawn[~first]) == set(range(n, n + m))
    assert np.array_equal(drawn, mixture.draw(4000, (7, 1)))
    assert not np.array_equal(drawn, mixture.draw(4000, (7, 2)))


def test_sources_of_several_image_sizes_are_brought_to_the_models():
    """Published demonstrations have 256 pixels, the rollouts of a policy as many as it sees."""
    large = chain(0, 8, success=True)
    images = {camera: frames.repeat(2, 1).repeat(2, 2) for camera, frames in large.images.items()}
    demonstrations = Source("demonstrations", FrameSet.in_memory([replace(large, images=images)] * 2, 20))
    policy = fresh("text")
    value = ValueFunction(expert_value_config(policy, 8, num_bins=REWARD.number_of_bins), policy)
    sources = [demonstrations, chains(0, 2)]
    _, mixture = value_objective(value, sources, REWARD, [np.zeros(2, bool)] * 2)
    side = policy.config.vision.image_size
    assert mixture.batch(np.array([0, 16]))["observation.images.front"].shape == (2, side, side, 3)
    _, mixture = value_objective(value, sources[1:], REWARD, [np.zeros(2, bool)])
    assert mixture.batch(np.array([0]))["observation.images.front"].shape == (1, 16, 16, 3)


def test_a_batch_has_the_windows_of_their_numbers():
    sources = [chains(0, 2), chains(50, 3)]
    mixture = Mixture(sources, FEATURES, 6)
    n = sources[0].num_frames
    windows = np.array([0, 3, 3, n, n + 11])
    batch = mixture.batch(windows)
    assert batch["window"].tolist() == windows.tolist()
    for row, window in enumerate(windows.tolist()):
        source, frame = (sources[0], window) if window < n else (sources[1], window - n)
        number, t = next(
            (i, frame - first)
            for i, first in reversed(list(enumerate(source.frames.starts)))
            if first <= frame
        )
        episode = source.frames.episode(number)
        steps = np.minimum(np.arange(t, t + 6), len(episode) - 1)
        assert np.array_equal(batch[CAMERA][row], episode.images["front"][t])
        assert np.array_equal(batch["observation.state"][row], episode.states[t])
        assert np.array_equal(batch["action"][row], episode.actions[steps])
        assert batch["action_is_pad"][row].tolist() == [t + i >= len(episode) for i in range(6)]
        assert batch["task"][row] == episode.labels.instruction
    assert mixture.batch(np.array([n + 1]))["observation.state"].shape == (1, 4)


def test_sources_that_cannot_be_drawn_from_are_refused():
    source = chains(0, 2)
    none = np.zeros(source.num_frames, bool)
    with pytest.raises(EpisodeDataError, match="nothing to train on in \\['rollouts-0'\\]"):
        Mixture([source, chains(9, 2)], FEATURES, 6, [none, np.ones(chains(9, 2).num_frames, bool)])


def test_recorded_rollouts_are_their_episodes_and_do_not_run_twice(metaworld, tmp_path):
    policy = GuidedPolicy(metaworld_policy())
    states = [s for task in METAWORLD for s in metaworld.initial_states(task, "train", [0])]
    states, seeds = [states[0], *states], [1, 2, 3]
    info = CollectionInfo(fps=40, robot_type="sawyer", storage="image", origin={})
    writer = EpisodeWriter(tmp_path / "rollouts", info)
    store = DatasetStore(writer, states, seeds, "policy:abc")
    record_rollouts(metaworld, policy, states[:2], seeds[:2], store)
    files = {p: p.stat().st_mtime_ns for p in writer.partial.glob("episode-*")}
    assert len(files) == 2
    record_rollouts(metaworld, policy, states, seeds, store)
    assert all(p.stat().st_mtime_ns == t for p, t in files.items())
    loaded = opened(writer.finalize())
    run = rollout(metaworld, policy, states, seeds, render_every=1)
    expected = [rollout_episode(r, "policy:abc") for r in run]
    assert [e.content_hash() for e in loaded] == [e.content_hash() for e in expected]
    in_memory = FrameSet.in_memory(expected, 40)
    assert in_memory.collection["content_hash"] == loaded.collection["content_hash"]
    assert np.array_equal(in_memory.starts, loaded.starts)
    with pytest.raises(EpisodeDataError, match="render_every=1"):
        rollout_episode(rollout(metaworld, policy, states[:1], seeds[:1])[0], "policy:abc")
    with pytest.raises(ValueError, match="found one twice"):
        DatasetStore(writer, [states[0]] * 2, [1, 1], "policy:abc")


class TwoLines(LineSuite):
    """Two tasks."""

    def tasks(self):
        (task,) = super().tasks()
        return (task, replace(task, name="again", instruction="move right again"))


class Push:
    """Pushes as hard as the seed of the episode says: from -0.1, which fails, to 0.5, which succeeds."""

    def chunks(self, observations, tasks, generators, among):
        force = [0.1 * (generator.initial_seed() % 7 - 1) for generator in generators]
        return np.repeat(np.array(force, np.float32), 3).reshape(-1, 3, 1)


def played(suite: TwoLines, state: InitialState, seed: int) -> tuple[bool, list[list[float]]]:
    """Success and states of an episode, step by step, alone."""
    line = suite.make(suite.tasks()[0])
    line.restore(state)
    states, success = [], False
    while not success and len(states) < 8:
        states.append(line.proprioception().tolist())
        success = line.step(np.array([0.1 * (seed % 7 - 1)]))
    return success, states


@pytest.mark.parametrize("num_episodes", [7, 2])
def test_labels_belong_to_their_episodes_when_slots_are_left_over(tmp_path, num_episodes):
    """OpenTau's recorder shifts labels onto other episodes if n % batch is not 0 and tasks are several."""
    suite = TwoLines()
    with BatchedEnv(suite, num_slots=3) as env:
        pool = [env.initial_states(task, "train", range(4)) for task in ("right", "again")]
        states = [state for both in zip(*pool, strict=True) for state in both][:num_episodes]
        seeds = [3 * i + 1 for i in range(num_episodes)]
        info = CollectionInfo(fps=10, robot_type="line", storage="image", origin={})
        writer = EpisodeWriter(tmp_path / "rollouts", info)
        record_rollouts(env, Push(), states, seeds, DatasetStore(writer, states, seeds, "policy:push"))
    loaded = opened(writer.finalize())
    assert loaded.num_episodes == num_episodes
    for episode, state, seed in zip(loaded, states, seeds, strict=True):
        success, expected = played(suite, state, seed)
        np.testing.assert_allclose(episode.states, expected, atol=1e-6)
        np.testing.assert_allclose(episode.actions, 0.1 * (seed % 7 - 1), atol=1e-6)
        assert (episode.labels.success, episode.labels.seed) == (success, seed)
        assert (episode.labels.task_id, episode.labels.initial_state_hash) == (state.task, state.hash)
        assert episode.labels.instruction == env.tasks[state.task].instruction
    if num_episodes == 7:
        assert len({(one.success, len(e)) for one, e in zip(loaded.labels, loaded, strict=True)}) == 3


# Value ------------------------------------------------------------------------------------------------------


def test_held_out_episodes_are_the_same_whatever_the_other_sources():
    source = chains(0, 20)
    held = heldout_episodes(source, 0.2)
    assert held.sum() == 4
    assert np.array_equal(held, heldout_episodes(source, 0.2))
    assert not np.array_equal(held, heldout_episodes(replace(source, name="other"), 0.2))
    assert heldout_episodes(chains(0, 2), 0.2).sum() == 1
    assert heldout_episodes(chains(0, 1), 0.2).sum() == 0


@pytest.fixture(scope="module")
def trained():
    policy = toy_policy(indicator="embedding")
    sources = [chains(0, 18), chains(50, 12)]
    settings = ValueTraining(steps=60, batch_size=32, learning_rate=3e-3)
    runs = []
    for _ in range(2):
        value = ValueFunction(expert_value_config(policy), policy, seed=1)
        rows, found = train_value(value, sources, REWARD, settings, (2,))
        runs.append((value, found, rows))
    return policy, sources, runs


def test_a_value_function_learns_what_the_image_shows(trained):
    _, sources, runs = trained
    value, found, rows = runs[0]
    assert found.num_episodes == 4 + 2
    assert found.correlation is not None
    assert found.correlation > 0.9
    assert found.order is not None
    assert found.order.concordance is not None
    assert found.order.concordance > 0.9
    assert found.calibration_error <= found.error < 0.15
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert set(rows[0]) == {"step", "loss", "train_accuracy", "error"}
    values = predict(value, sources[0].frames)
    assert values.shape == (sources[0].num_frames,)
    some = np.array([3, 40])
    np.testing.assert_allclose(predict(value, sources[0].frames, some), values[some], atol=1e-5)
    assert check_gates(found, LABELS, Gates(undecided="go"))[0].startswith(
        "value function: undecided: concordance 0.9"
    )


def test_training_is_a_function_of_its_seed(trained):
    _, _, ((first, found, rows), (second, again, other)) = trained
    assert (found, rows) == (again, other)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_other_bins_are_refused(trained):
    value = trained[2][0][0]
    with pytest.raises(ValueError, match="number_of_bins: expected the value function's 201, found 51"):
        train_value(value, [chains(0, 3)], replace(REWARD, number_of_bins=51), ValueTraining(steps=1))


def test_calibration_in_closed_form():
    returns = np.array([-0.3, -0.2, -0.1, -0.9, -0.8])
    tasks = ["task", "task"]
    exact = calibration(returns, returns, [3, 2], tasks)
    assert exact.correlation == pytest.approx(1.0)
    assert (exact.calibration_error, exact.error) == (0.0, 0.0)
    assert exact.order is not None
    assert exact.order.concordance == 1.0
    assert Calibration.from_dict(asdict(exact)) == exact
    shifted = calibration(returns - 0.05, returns, [3, 2], tasks)
    assert shifted.calibration_error == pytest.approx(0.05)
    # Errors that cancel within a tenth of the range do not make it miscalibrated.
    noisy = calibration(np.array([-0.34, -0.36]), np.array([-0.31, -0.39]), [1, 1], tasks)
    assert noisy.error == pytest.approx(0.03)
    assert noisy.calibration_error == pytest.approx(0.0, abs=1e-12)
    assert calibration(np.full(2, -0.5), np.array([-0.1, -0.9]), [1, 1], tasks).correlation is None


@pytest.mark.parametrize(
    ("calibration_changes", "label_changes", "message"),
    [
        (
            {"order": Concordance(0.5, 0.54, p_value=0.5)},
            {},
            "value function: fails: concordance 0.500 on 9 held-out episodes (chance comes as far with "
            "p = 0.500), at least 0.55",
        ),
        ({"order": Concordance(0.7, 0.9, p_value=0.1)}, {}, "value function: undecided: concordance 0.700"),
        ({"order": Concordance(None, None, p_value=1.0)}, {}, "undecided: no two of 9 held-out episodes"),
        ({}, {"coverage": 0.99}, "label coverage: 0.990, at least 1"),
        ({}, {"positive_fraction": 0.0}, "positive fraction: 0.000, 0.3 within 0.05"),
        ({}, {"positive_fraction": None}, "positive fraction: none: no rollout succeeded"),
    ],
)
def test_a_gate_stops_with_the_figure_and_what_to_try(calibration_changes, label_changes, message):
    with pytest.raises(GateError) as error:
        check_gates(replace(GOOD, **calibration_changes), replace(LABELS, **label_changes), Gates())
    assert message in str(error.value)
    assert "\n  try: " in str(error.value)
    assert str(error.value).count("try:") == 1


def test_gates_let_good_figures_through():
    assert len(check_gates(GOOD, LABELS, Gates())) == 3
    assert "not judged, by version 0.1.0" in check_gates(replace(GOOD, order=None), LABELS, Gates())[0]


# Policy -----------------------------------------------------------------------------------------------------


def test_indicators_follow_the_mode():
    source = chains(0, 2)
    positive = np.arange(source.num_frames) % 3 == 0
    expected = np.where(positive, Indicator.POSITIVE, Indicator.NEGATIVE)
    assert np.array_equal(indicators(source, positive), expected)
    assert (indicators(replace(source, advantage="on"), positive) == Indicator.POSITIVE).all()
    assert (indicators(replace(source, advantage="ignore"), positive) == Indicator.NONE).all()


def test_dropout_is_keyed_by_seed_step_and_window():
    windows = np.arange(3000)
    given = np.full(3000, int(Indicator.POSITIVE))
    kept = withhold_keyed(given, windows, (0, 5), 0.3)
    assert (kept == Indicator.NONE).mean() == pytest.approx(0.3, abs=0.03)
    assert set(kept) == {Indicator.NONE, Indicator.POSITIVE}
    part = windows[100:200]
    assert np.array_equal(withhold_keyed(given[part], part, (0, 5), 0.3), kept[part])
    assert not np.array_equal(withhold_keyed(given, windows, (0, 6), 0.3), kept)


def test_awr_weights():
    found = awr_weights(np.array([0.0, 0.5, 40.0, 1e4, -np.inf]), beta=0.5, largest=10.0)
    np.testing.assert_allclose(found, [1.0, np.e, 10.0, 10.0, 0.0], rtol=1e-6)


SHORT = PolicyTraining(steps=3, batch_size=8, learning_rate=1e-3)
SEED = (4,)


def fresh(mode: str = "embedding"):
    return toy_policy({"image_keys": (CAMERA,)}, indicator=mode)


def labelled() -> tuple[list[Source], list[np.ndarray]]:
    sources = [chains(0, 4), chains(50, 4)]
    return sources, [np.linspace(-1, 1, source.num_frames) for source in sources]


EPSILON = {"suite/0": 0.0, "suite/1": 0.0}


@pytest.mark.parametrize("mode", ["embedding", "text"])
def test_policy_training_is_a_function_of_its_seed_and_of_the_labels(mode):
    sources, advantages = labelled()

    def trained(changed: list[np.ndarray] = advantages, seed=SEED, **changes):
        policy, settings = fresh(mode), replace(SHORT, **changes)
        rows = train_policy(policy, sources, changed, EPSILON, settings, seed)
        assert not policy.training
        return torch.nn.utils.parameters_to_vector(policy.parameters()).detach(), rows

    first, rows = trained()
    assert torch.equal(first, trained()[0])
    assert not torch.equal(first, trained(seed=(5,))[0])
    assert not torch.equal(first, trained([-a for a in advantages])[0])
    assert not torch.equal(first, trained(use_awr=True)[0])
    assert [row["step"] for row in rows] == [0, 1, 2]


def test_the_loss_is_that_of_the_policy_at_the_keyed_noise():
    sources, advantages = labelled()
    settings = replace(SHORT, steps=1, indicator_dropout=0.0, use_awr=True, awr_beta=0.5)
    rows = train_policy(fresh(), sources, advantages, EPSILON, settings, SEED)
    policy = fresh()
    mixture = Mixture(sources, FEATURES, 8)
    windows = mixture.draw(8, (4, 0))
    a = np.concatenate(advantages)[windows]
    noise, time = window_draws(policy, windows.tolist(), (4, 0), 2)
    indicator = torch.from_numpy(np.where(a > 0, int(Indicator.POSITIVE), int(Indicator.NEGATIVE)))
    losses = policy.loss(
        mixture.batch(windows), reduction="sample", indicator=indicator, noise=noise, time=time
    )
    weights = torch.from_numpy(np.minimum(np.exp(a / 0.5), 10.0)).float()
    assert rows[0]["loss"] == pytest.approx((losses * weights).mean().item(), rel=1e-5)
    assert rows[0]["positive"] == pytest.approx((a > 0).mean())


@pytest.mark.parametrize("mode", ["embedding", "text"])
def test_the_loss_of_ript_imitates_what_is_positive_and_all_a_little_without_indicator(mode):
    sources, advantages = labelled()
    settings = replace(SHORT, steps=1)
    rows = train_policy(fresh(mode), sources, advantages, EPSILON, settings, SEED, uncond_weight=0.1)
    policy, mixture = fresh(mode), Mixture(sources, FEATURES, 8)
    windows = mixture.draw(8, (4, 0))
    noise, time = window_draws(policy, windows.tolist(), (4, 0), 2)
    positive, withheld = (
        policy.loss(mixture.batch(windows), reduction="sample", indicator=i, noise=noise, time=time)
        for i in (Indicator.POSITIVE, Indicator.NONE)
    )
    is_better = torch.from_numpy(np.concatenate(advantages)[windows] > 0)
    assert 0 < is_better.sum() < 8
    assert rows[0]["loss"] == pytest.approx((is_better * positive + 0.1 * withheld).mean().item(), rel=1e-5)
    assert rows[0]["positive"] == pytest.approx(is_better.double().mean().item())


def test_frames_without_advantage_are_left_out():
    sources, advantages = labelled()
    missing = [np.where(np.arange(len(a)) % 2, np.nan, a) for a in advantages]
    policy = fresh()
    train_policy(policy, sources, missing, EPSILON, replace(SHORT, use_awr=True))
    assert all(torch.isfinite(p).all() for p in policy.parameters())
    nothing = [np.full(len(a), np.nan) for a in advantages]
    with pytest.raises(EpisodeDataError, match="nothing to train on"):
        train_policy(fresh(), sources, nothing, EPSILON, SHORT)
    forced = [replace(source, advantage="on") for source in sources]
    rows = train_policy(fresh(), forced, nothing, {}, replace(SHORT, indicator_dropout=0.0))
    assert rows[0]["positive"] == 1.0


def test_frozen_parameters_stay():
    sources, advantages = labelled()
    policy = fresh()
    policy.model.freeze("vision")
    before = {n: p.clone() for n, p in policy.named_parameters()}
    train_policy(policy, sources, advantages, EPSILON, SHORT)
    for name, parameter in policy.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


def test_a_checkpoint_must_have_statistics_of_such_demonstrations(tmp_path, monkeypatch, capsys):
    source, environment = chains(0, 3), get_environment("metaworld")
    monkeypatch.setattr(trainings, "open_sources", lambda *_, **__: [source])
    monkeypatch.setattr(trainings, "require_fits", lambda *_: None)
    workshop, reading = (
        Workshop(World(), "cpu", ImageCache(0.0), fit, tmp_path / "untrained", SnapshotPlan()),
        Reading(None, True, {}),
    )
    policy = toy_policy(indicator="embedding")

    def make_from(statistics: dict):
        policy.use_embodiments({None: Embodiment(policy.features, statistics)})
        policy.save_pretrained(tmp_path / "checkpoint")
        path, settings = str(tmp_path / "checkpoint"), RecapPolicy()
        recipe = SupervisedRecipe(path, None, None, settings, 8, None, "on", 0, reading, environment)
        return recipe.make({}, tmp_path / "work", workshop)

    own = mixture_statistics([source.frames], [np.arange(source.num_frames)])
    assert make_from(own) == {"steps": 0}
    assert "statistics: " not in capsys.readouterr().out
    other = {**own, "action": {**own["action"], "mean": own["action"]["mean"] + torch.tensor([0, 4000.0, 0])}}
    with pytest.raises(EpisodeDataError, match=r"action\[1\]: expected.*policy.statistics_path=FILE"):
        make_from(other)
    doubtful = {**own, "action": {**own["action"], "mean": own["action"]["mean"] + 50}}
    assert make_from(doubtful) == {"steps": 0}
    assert "are they those of such values?" in capsys.readouterr().out


def test_sft_takes_a_policy_with_an_absent_camera(tmp_path, monkeypatch):
    """The real base has three cameras, of which the simulator shows two."""
    drifting.install()
    source, wrist = replace(chains(0, 2), advantage="on"), "observation.images.right_wrist_0_rgb"
    own = mixture_statistics([source.frames], [np.arange(source.num_frames)])
    features = {"image_keys": (CAMERA, wrist), "absent_cameras": (wrist,)}
    policy = toy_policy(features, indicator="embedding")
    policy.use_embodiments({None: Embodiment(policy.features, own)})
    policy.save_pretrained(tmp_path / "checkpoint")
    monkeypatch.setattr(trainings, "open_sources", lambda *_, **__: [source])
    workshop = Workshop(World(), "cpu", ImageCache(0.0), fit, tmp_path / "untrained", SnapshotPlan())
    settings = PolicyTraining(steps=1, batch_size=4)
    recipe = SupervisedRecipe(str(tmp_path / "checkpoint"), None, None, RecapPolicy(), 8, settings, "on", 0,
                              Reading(None, True, {}), get_environment("drifting"))  # fmt: skip
    assert recipe.make({}, tmp_path / "work", workshop)["steps"] == 1
    trained = PI0Policy.from_pretrained(tmp_path / "work")
    assert (trained.features.absent_cameras, trained.features.present_cameras) == ((wrist,), (CAMERA,))
    drifting.uninstall()


def test_a_base_model_takes_statistics_and_widths_of_the_demonstrations(tmp_path, monkeypatch):
    source, environment = chains(0, 3), get_environment("metaworld")
    monkeypatch.setattr(trainings, "open_sources", lambda *_, **__: [source])
    monkeypatch.setattr(trainings, "require_fits", lambda *_: None)
    workshop = Workshop(World(), "cpu", ImageCache(0.0), fit, tmp_path / "untrained", SnapshotPlan())
    base = toy_policy({"state_normalization": "identity", "action_normalization": "identity"})
    features = replace(
        base.features,
        state_dim=8,
        action_dim=8,
        state_normalization="mean_std",
        action_normalization="mean_std",
    )
    with monkeypatch.context() as without_statistics:
        without_statistics.setattr(PI0Policy, "features", features)
        without_statistics.setattr(PI0Policy, "statistics", {})
        base.save_pretrained(tmp_path / "base")
    reading = Reading(None, True, {}, {"observation.images.front": "observation.images.front"})

    def make_with(**settings):
        named = RecapPolicy(**settings)
        path = str(tmp_path / "base")
        recipe = SupervisedRecipe(path, None, None, named, 8, None, "on", 0, reading, environment)
        return recipe.make({}, tmp_path / "work", workshop)

    with pytest.raises(MissingStatisticsError):
        make_with()
    assert make_with(statistics="data") == {"steps": 0}
    made = PI0Policy.from_pretrained(tmp_path / "work")
    assert (made.features.state_dim, made.features.action_dim) == (4, 3)
    expected = mixture_statistics([source.frames], [np.arange(source.num_frames)])
    torch.testing.assert_close(made.statistics["action"]["mean"], expected["action"]["mean"])


def test_demonstrations_statistics_are_made_by_the_conventions_of_the_robot_that_is_chosen(
    tmp_path, monkeypatch
):
    source, environment = chains(0, 3), get_environment("metaworld")
    monkeypatch.setattr(trainings, "open_sources", lambda *_, **__: [source])
    monkeypatch.setattr(trainings, "require_fits", lambda *_: None)
    workshop = Workshop(World(), "cpu", ImageCache(0.0), fit, tmp_path / "untrained", SnapshotPlan())
    base = toy_policy()
    own = Embodiment(base.features, base.statistics)
    relative = replace(own, features=replace(base.features, relative_actions=(True, True, False)))
    base.use_embodiments({"absolute": own, "relative": relative})
    base.save_pretrained(tmp_path / "base")
    reading = Reading(None, True, {}, {})
    for tag, mask in (("absolute", ()), ("relative", (True, True, False))):
        named = RecapPolicy(statistics="data", embodiment=tag)
        path = str(tmp_path / "base")
        recipe = SupervisedRecipe(path, None, None, named, 8, None, "on", 0, reading, environment)
        recipe.make({}, tmp_path / tag, workshop)
        made = PI0Policy.from_pretrained(tmp_path / tag)
        assert made.features.relative_actions == mask
        rows = [np.arange(source.num_frames)]
        expected = mixture_statistics([source.frames], rows, relative_actions=mask, chunk_size=8)
        torch.testing.assert_close(made.statistics["action"]["mean"], expected["action"]["mean"])


def test_policies_that_cannot_take_the_label_are_refused():
    sources, advantages = labelled()
    with pytest.raises(ValueError, match="this policy takes none"):
        train_policy(fresh("none"), sources, advantages, EPSILON, SHORT)
    dropping = toy_policy({"image_keys": (CAMERA,)}, indicator="text", indicator_dropout=0.3)
    with pytest.raises(ValueError, match="indicator_dropout: expected 0"):
        train_policy(dropping, sources, advantages, EPSILON, SHORT)
    with pytest.raises(ValueError, match="advantages: expected one for each of"):
        train_policy(fresh(), sources, [advantages[0], advantages[1][1:]], EPSILON, SHORT)


def test_the_policy_learns_to_tell_positive_from_negative():
    """Two ways to act in the same places: after training the indicator chooses between them."""
    made = []
    for number in range(8):
        episode = chain(0, 10, success=True)
        episode.images["front"][:] = 100
        actions = np.full((10, 3), 1.0 if number % 2 else -1.0, np.float32)
        made.append(replace(episode, states=np.zeros((10, 4), np.float32), actions=actions))
    source = Source("both", FrameSet.in_memory(made, 20))
    advantages = np.repeat(np.arange(8) % 2, 10).astype(float)
    policy = fresh()
    normalizer = policy.embodiments.acting.action_normalizer
    normalizer.low.zero_()
    normalizer.scale_in.fill_(1.0)
    normalizer.scale_out.fill_(1.0)
    settings = PolicyTraining(steps=50, batch_size=12, learning_rate=4e-3, num_draws=1)
    epsilon = thresholds(advantages, source.frame_tasks(), 0.5)
    train_policy(policy, [source], [advantages], epsilon, settings)
    batch = Mixture([source], FEATURES, 8).batch(np.arange(16))
    observed = {k: batch[k] for k in (CAMERA, "observation.state", "task")}
    means = {}
    for indicator in (Indicator.POSITIVE, Indicator.NEGATIVE):
        noise = torch.randn(16, 8, 8, generator=torch.Generator().manual_seed(0))
        means[indicator] = policy.sample_actions(observed, noise=noise, indicator=indicator).mean().item()
    assert means[Indicator.POSITIVE] > 0.5
    assert means[Indicator.NEGATIVE] < -0.5

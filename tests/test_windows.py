"""Training windows: what the policy saw and did, all of it, and nothing else."""

import numpy as np
import pytest
import torch
from conftest import CAMERA, METAWORLD, metaworld_policy

from pi0.ript.rollout import GuidedPolicy, rollout
from pi0.ript.windows import concatenate, episode_windows, rollout_windows

HORIZON = 8


def episode(length: int, observed: list[int], horizon: int, advantage: float = 0.0):
    """Windows of an episode whose numbers say where they come from: action 10 t, state t, image n."""
    n = len(observed)
    return episode_windows(
        images={"front": np.arange(n, dtype=np.uint8)[:, None, None, None].repeat(3, -1)},
        states=np.arange(length, dtype=np.float32)[:, None],
        actions=10 * np.arange(length, dtype=np.float32)[:, None],
        observed=np.array(observed),
        instruction=f"go {length}",
        horizon=horizon,
        advantage=advantage,
    )


@pytest.fixture(scope="module")
def acted(metaworld):
    """Rollouts of both tasks, and the observations that the model acted on, in order of the calls."""
    policy = metaworld_policy({"relative_actions": (True, True, True, False)})
    seen, preprocess = [], policy.preprocess

    def record(*args, **options):
        seen.append(preprocess(*args, **options))
        return seen[-1]

    policy.preprocess = record
    states = [state for task in METAWORLD for state in metaworld.initial_states(task, "train", [0])]
    rollouts = rollout(metaworld, GuidedPolicy(policy), states, [0, 1], render_every=3)
    del policy.preprocess
    return policy, rollouts, seen


def test_closed_form():
    windows = episode(11, [0, 4, 8], horizon=6)
    assert windows.states[:, 0].tolist() == [0, 4, 8]
    assert windows.actions[:, :, 0].tolist() == [
        [0, 10, 20, 30, 40, 50],
        [40, 50, 60, 70, 80, 90],
        [80, 90, 100, 100, 100, 100],
    ]
    assert windows.is_pad.tolist() == [[False] * 6, [False] * 6, [False] * 3 + [True] * 3]
    assert windows.images["front"][:, 0, 0, 0].tolist() == [0, 1, 2]
    assert windows.instructions == ["go 11"] * 3


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 20])
def test_windows_from_chunk_starts_cover_every_step_once(length):
    windows = episode(length, list(range(0, length, HORIZON)), HORIZON)
    covered = windows.actions[~windows.is_pad][:, 0] / 10
    assert covered.tolist() == list(range(length))


def test_the_policy_trains_on_what_it_acted_on_bit_for_bit(acted):
    policy, rollouts, seen = acted
    for row, episode in enumerate(rollouts):
        starts = np.flatnonzero(episode.observed % HORIZON == 0)
        batch = rollout_windows([episode], [1.0], HORIZON).batch(starts)
        trained = policy.preprocess(batch)
        assert len(starts) == len(seen) == 3
        for i, observation in enumerate(seen):
            assert torch.equal(observation.images[row], trained.images[i])
            assert torch.equal(observation.state[row], trained.state[i])
            assert torch.equal(observation.image_mask[row], trained.image_mask[i])
            tokens = observation.tokens[row, observation.token_mask[row]]
            assert torch.equal(tokens, trained.tokens[i, trained.token_mask[i]])
    assert not torch.equal(seen[0].images[0], seen[1].images[0]), "nothing moved"


def test_targets_are_the_executed_actions_and_decode_to_them(acted):
    policy, rollouts, _ = acted
    for r in rollouts:
        windows = rollout_windows([r], [0.0], HORIZON)
        batch = windows.batch(np.arange(len(windows)))
        state, action = batch["observation.state"], batch["action"]
        for i, step in enumerate(r.observed):
            valid = ~windows.is_pad[i]
            assert valid.sum() == min(HORIZON, len(r) - step)
            np.testing.assert_array_equal(action[i, valid], r.actions[step : step + HORIZON])
            np.testing.assert_array_equal(state[i], r.states[step])
        target = policy.encode_actions(action, state)
        torch.testing.assert_close(policy.decode_actions(target, state), action, rtol=0, atol=1e-5)
        statistics = policy.statistics["action"]
        base = state[:, None] * torch.tensor([1.0, 1.0, 1.0, 0.0])
        expected = (action - base - torch.as_tensor(statistics["mean"])) / torch.as_tensor(statistics["std"])
        torch.testing.assert_close(target[..., :4], expected, rtol=1e-4, atol=1e-5)
        assert not target[..., 4:].any()


def test_windows_inside_chunks_have_the_image_of_their_step(acted):
    _, rollouts, _ = acted
    for r in rollouts:
        assert r.observed.tolist() == [0, 3, 6, 8, 11, 14, 16, 19]
        windows = rollout_windows([r], [0.0], HORIZON)
        np.testing.assert_array_equal(windows.images["front"], r.images["front"])
        np.testing.assert_array_equal(windows.states, r.states[r.observed])


def test_each_window_has_the_advantage_of_its_episode(acted):
    _, rollouts, _ = acted
    windows = rollout_windows(rollouts, [1.0, -0.5], HORIZON)
    assert windows.advantages.tolist() == [1.0] * 8 + [-0.5] * 8
    assert windows.instructions == [text for text in METAWORLD.values() for _ in range(8)]
    with pytest.raises(ValueError, match="shorter"):
        rollout_windows(rollouts, [1.0], HORIZON)


def test_batch_and_select_take_the_same_windows():
    windows = concatenate([episode(11, [0, 4, 8], 6, 1.0), episode(5, [0, 4], 6, -1.0)])
    assert len(windows) == 5
    indices = np.array([4, 0, 2])
    batch, selected = windows.batch(indices), windows.select(indices)
    assert batch["observation.state"][:, 0].tolist() == [4, 0, 8]
    assert batch["action"][:, 0, 0].tolist() == [40, 0, 80]
    assert batch["action_is_pad"].sum(1).tolist() == [5, 0, 3]
    assert batch[CAMERA][:, 0, 0, 0].tolist() == [1, 0, 2]
    assert batch["task"] == ["go 5", "go 11", "go 11"]
    assert batch["advantage"].tolist() == [-1, 1, 1]
    again = selected.batch(np.arange(3))
    assert again.keys() == batch.keys()
    for key, value in batch.items():
        if key == "window":
            assert (value.tolist(), again[key].tolist()) == ([4, 0, 2], [0, 1, 2])
        else:
            assert value == again[key] if key == "task" else torch.equal(value, again[key])


def test_the_loss_takes_a_batch_of_windows_and_skips_what_is_beyond_the_end(acted):
    policy, rollouts, _ = acted
    windows = rollout_windows(rollouts, [1.0, -1.0], HORIZON)
    batch = windows.batch(np.arange(len(windows)))
    element = policy.loss(batch, reduction="element", generator=torch.Generator().manual_seed(0))
    assert windows.is_pad.any()
    assert not element[windows.is_pad].any()
    assert (element[~windows.is_pad] > 0).all()

"""The environment variables of requirement 001: what a policy is given, and videos of what it learns from."""

import json

import numpy as np
import pytest
from conftest import metaworld_policy
from PIL import Image

from pi0.ript.environments import get_environment
from pi0.ript.groups import InitialStateDataset, collect_groups
from pi0.ript.results import new_run_directory
from pi0.ript.rollout import GuidedPolicy, observation_batch


@pytest.mark.parametrize("asked", [True, False])
def test_processed_observations_and_videos_are_kept_if_asked_for(tmp_path, monkeypatch, capsys, asked):
    if asked:
        monkeypatch.setenv("DEBUG_SAVE_PROCESSED", "1")
        monkeypatch.setenv("PI0_DEBUG_SAVE_VIDEO", "true")
    run_dir = new_run_directory(tmp_path / "run")
    policy = metaworld_policy()
    with get_environment("metaworld", max_episode_length=4, num_parallel_envs=2, num_workers=0).make() as env:
        states = InitialStateDataset(env, 1).shuffled(0)
        options = {"num_groups": 1, "group_size": 2, "max_attempts": 1, "seed": (0,), "render_every": 2}
        collect_groups(env, GuidedPolicy(policy), states, **options)
        state = next(InitialStateDataset(env, 1).shuffled(0))
        observation = env.reset({0: state})[0]
    if not asked:
        assert capsys.readouterr().out.count("writing to") == 0
        assert not (run_dir / "debug").exists()
        return
    assert capsys.readouterr().out.count(f"writing to {run_dir / 'debug'}\n") == 2, "one line for each"
    assert {file.name for file in (run_dir / "debug").iterdir()} == {
        *("processed-0.png", "processed-0.json", "rollouts-0.mp4")
    }
    given = policy.preprocess(observation_batch([observation], [env.tasks[state.task]]))
    said = json.loads((run_dir / "debug/processed-0.json").read_text())
    np.testing.assert_allclose(said["state"], given.state[0].numpy(), rtol=1e-6)
    assert said["tokens"] == given.tokens[0][given.token_mask[0]].tolist()
    size = policy.config.vision.image_size
    shown = np.asarray(Image.open(run_dir / "debug/processed-0.png"), np.float32)
    assert shown.shape == (size, size * len(policy.features.present_cameras), 3)
    expected = given.images[0, 0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(shown[:, :size] / 127.5 - 1, expected, atol=1 / 127)

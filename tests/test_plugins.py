"""A package outside the library adds a model, an environment and an algorithm, and trains them."""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import plugin_example.__main__ as plugin
import pytest
import torch
from conftest import toy_policy
from plugin_example.line import LineSuite
from plugin_example.model import PLAIN, SKIP, SkipConfig, SkipModel
from plugin_example.objective import SuccessLoss
from test_serving import ask, talk

from pi0 import CheckpointError, Pi0Config, PI0Policy, WeightLoader, registry
from pi0.registry import available, get_config, load_plugins, register_config
from pi0.ript.commands import advantage, evaluate, export, serve
from pi0.ript.commands.chosen_policy import load_policy
from pi0.ript.config import ConfigError, load_config_from_yaml, validate_config
from pi0.ript.envs import register_env
from pi0.ript.loss import AdvantageLoss, make_learner, register_algorithm
from pi0.ript.scripts.train import main as train
from pi0.ript.serving.wire import pack
from pi0.ript.starting_policy import task_features

ROOT = Path(__file__).parent.parent
MINIMAL = ROOT / "pi0/ript/config/minimal_test.yaml"


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    directory = tmp_path_factory.mktemp("start")
    plugin.write_policy(directory)
    return directory


def settings(start, output):
    return [
        *("task.benchmark_name=line", "task.num_parallel_envs=4", "task.num_workers=0"),
        "task.max_episode_length=8",
        *(f"policy_path={start}", "policy.config=line_skip", "policy.freeze=null", "algo.name=successes"),
        *("algo.rloo_batch_size=4", "algo.data_batch_size=2", "algo.max_sampling_attempts=6"),
        *("training.num_train_steps=2", "dataset.num_init_states=6", "eval.rollouts_per_task=4"),
        *("algo.collection_cfg_scale=1.0", "eval.cfg_guidance_scale=1.0", "eval.n_video=0"),
        *(f"output_dir={output}", "exp_name=line"),
    ]


def test_an_outside_package_is_trained_without_an_edit_of_the_library(start, tmp_path, monkeypatch, capsys):
    script = ROOT / "9_train_with_config.py"
    words = ["--config_path", str(MINIMAL), "--plugins", "plugin_example", *settings(start, tmp_path)]
    monkeypatch.setattr(sys, "argv", [str(script), *words])
    runpy.run_path(str(script), run_name="__main__")
    results = json.loads((tmp_path / "line" / "results.json").read_text())
    assert [row["train/windows"] > 0 for row in results["metrics"]] == [True, True]
    assert set(results["before"]["tasks"]) == {"line/right"}
    trained = PI0Policy.from_pretrained(tmp_path / "line" / "policy")
    assert type(trained.model) is SkipModel
    assert type(trained.config) is SkipConfig
    config = SKIP if trained.config.indicator == "none" else replace(SKIP, indicator="embedding")
    first = PI0Policy.from_pretrained(start, config=config).model
    changed = {
        name for (name, a), b in zip(first.named_parameters(), trained.model.parameters(), strict=True)
        if not torch.equal(a, b)
    }  # fmt: skip
    assert {"skip.weight", "skip.bias", "action_out_proj.weight"} <= changed
    assert not [name for name in changed if name.startswith("vision.")], "the configuration freezes it"


def test_a_configuration_of_ones_own_is_saved_and_loaded_with_its_class_and_weights(tmp_path):
    policy = plugin.write_policy(tmp_path, SKIP)
    again = PI0Policy.from_pretrained(tmp_path)
    assert type(again.model) is SkipModel
    assert again.config == SKIP
    for (name, a), b in zip(policy.model.named_parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_the_weight_loader_of_a_configuration_says_what_may_be_new(start, monkeypatch):
    loaded = PI0Policy.from_pretrained(start, config=SKIP)
    assert loaded.model.skip.weight.abs().sum() > 0
    with pytest.raises(CheckpointError, match=r"missing +skip\.weight"):
        PI0Policy.from_pretrained(start, config=SKIP, weights=WeightLoader())


def test_a_checkpoint_whose_plugin_is_not_loaded_says_so(tmp_path, monkeypatch):
    plugin.write_policy(tmp_path, SKIP)
    monkeypatch.setattr(registry, "_CONFIGS", {"pi0": Pi0Config()})
    with pytest.raises(CheckpointError, match=r"unknown policy configuration 'line_skip'.*--plugins"):
        PI0Policy.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="SkipConfig is not registered"):
        PI0Policy(SKIP, *_parts()).save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_pi0_eval_takes_plugins_as_options_and_beside_a_file(start, tmp_path, capsys):
    plugins = ["--plugins", "plugin_example"]
    options = ["--policy", str(start), "--env", "line", "--episodes", "2", "--videos", "0", "--device", "cpu"]
    place = ["--env-option", "num_parallel_envs=2", "--num-workers", "0", "--output", str(tmp_path / "a")]
    assert evaluate.main([*options, *place, *plugins]) == 0
    file = tmp_path / "rollouts.json"
    judged = {"num_episodes": 2, "save_videos": False}
    task = {"suite": "line", "num_envs": 2}
    file.write_text(json.dumps({"policy_path": str(start), "env": task, "eval": judged}))
    words = [f"--config_path={file}", *plugins, "task.num_workers=0", f"output_dir={tmp_path / 'b'}"]
    assert evaluate.main(words) == 0
    assert capsys.readouterr().out.count("line/right") == 2
    assert evaluate.main([*words, "--plugins", "no_such_package"]) == 2
    assert "plugins: 'no_such_package'" in capsys.readouterr().err


def test_pi0_advantage_takes_plugins(tmp_path, capsys):
    words = [f"--value={tmp_path}", "--plugins", "no_such_package", str(tmp_path)]
    assert advantage.main(words) == 2
    assert "plugins: 'no_such_package'" in capsys.readouterr().err


@pytest.mark.slow
def test_an_outside_package_goes_through_every_command(tmp_path, capsys):
    """Its rollouts are recorded, valued, labelled and learned from, and the policy is served."""
    plugin.write_policy(tmp_path / "start", SKIP)
    start, data, plugins = str(tmp_path / "start"), str(tmp_path / "data"), ("--plugins", "plugin_example")
    place = ("--env-option", "num_parallel_envs=2", "--num-workers", "0", "--output", str(tmp_path / "eval"))
    words = ("--policy", start, "--env", "line", "--episodes", "3", "--videos", "0", "--device", "cpu")
    recording = ("--recording-root", data, "--states", "train")
    assert evaluate.main([*words, *place, *recording, *plugins]) == 0, capsys.readouterr().err

    def trained(name: str, *more: str) -> str:
        sizes = ("steps=2", "batch_size=4", "log_freq=1", "dataset_mixture.num_workers=0", "device=cpu")
        mixture = (f"dataset_mixture.datasets=[{{root: {data}, assume_success: true}}]",)
        words = (*mixture, *sizes, f"output_dir={tmp_path}", f"exp_name={name}", *more, *plugins)
        assert train([*words]) == 0, capsys.readouterr().err
        return str(tmp_path / name)

    value = trained("value", "policy.type=value", f"policy.reads={start}", "policy.width=16")
    labelled = [f"--value={value}", f"--policy={start}", "--device=cpu", data, *plugins]
    assert advantage.main(labelled) == 0, capsys.readouterr().err
    policy = trained("policy", f"policy_path={start}", "policy.advantage=use", "policy.statistics=data")
    assert type(PI0Policy.from_pretrained(policy).model) is SkipModel
    require_served(policy)


def require_served(policy: str) -> None:
    served = load_policy(
        serve._parser().parse_args([policy, "--device", "cpu", "--plugins", "plugin_example"])
    )
    seen = {"observation.images.front": np.zeros((8, 8, 3), np.uint8), "task": "move right"}
    message = pack({**seen, "observation.state": np.zeros(2, np.float32)})
    _, (answer,), _ = talk(lambda session, url: ask(session, url, message), served)
    assert answer["actions"].shape == (4, 1)


def test_a_policy_of_an_outside_package_is_served(tmp_path):
    plugin.write_policy(tmp_path / "policy", SKIP)
    require_served(str(tmp_path / "policy"))


@pytest.mark.slow
def test_a_policy_of_an_outside_package_is_exported(tmp_path, capsys):
    plugin.write_policy(tmp_path / "policy", SKIP)
    words = [str(tmp_path / "policy"), "--output", str(tmp_path / "exported"), "--num-steps", "1"]
    assert export.main([*words, "--device", "cpu", "--plugins", "plugin_example"]) == 0, (
        capsys.readouterr().err
    )
    assert (tmp_path / "exported/sampler.pt2").exists()


def _parts():
    policy = toy_policy({"state_dim": 2, "action_dim": 1})
    return policy.features, policy.tokenizer, policy.statistics


def test_configurations_by_name(monkeypatch):
    monkeypatch.setattr(registry, "_CONFIGS", dict(registry._CONFIGS))
    register_config("pi0_small_chunk", Pi0Config(chunk_size=10, n_action_steps=5))
    assert get_config("pi0_small_chunk").inputs_spec()["actions"] == ((1, 10, 32), "float32")
    assert {"pi0", "pi05", "pi0_lora", "pi0_small_chunk"} <= set(available())
    assert get_config("pi05").pi05
    assert get_config("pi0_lora").freeze_filter() == "lora"
    assert get_config("pi0").freeze_filter() == "none"
    with pytest.raises(ValueError, match=r"unknown policy configuration 'pi0_lra'; did you mean 'pi0_lora'"):
        get_config("pi0_lra")
    with pytest.raises(ValueError, match="'pi0' is registered already"):
        register_config("pi0", Pi0Config())


def test_algorithms_by_name():
    policy = toy_policy(indicator="embedding")
    algo = load_config_from_yaml(MINIMAL).algo
    learner = make_learner(policy, algo)
    assert type(learner) is AdvantageLoss
    assert (learner.uncond_weight, learner.num_draws) == (algo.cfg_uncond_weight, algo.num_draws)
    assert type(make_learner(policy, replace(algo, name="successes"))) is SuccessLoss
    with pytest.raises(ValueError, match="'ript' is registered already"):
        register_algorithm("ript", lambda policy, algo: AdvantageLoss(policy, 0.1))


def test_wrong_names_are_told_together_before_any_work(start, tmp_path):
    overrides = ["algo.name=sucesses", "policy.config=line_skp", "task.benchmark_name=lime"]
    config = load_config_from_yaml(MINIMAL, [*settings(start, tmp_path), *overrides])
    with pytest.raises(ConfigError) as error:
        validate_config(config)
    assert "algo.name: unknown algorithm 'sucesses'; did you mean 'successes'" in str(error.value)
    assert "policy.config: unknown policy configuration 'line_skp'; did you mean 'line_skip'" in str(
        error.value
    )
    assert "unknown benchmark_name 'lime'; did you mean 'line'" in str(error.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "'plugin_under_test' is not installed"),
        ("import not_there_either", "'plugin_under_test' needs not_there_either"),
        (
            "from pi0.registry import *\nfrom pi0 import Pi0Config\nregister_config('pi05', Pi0Config())",
            "'plugin_under_test' failed to register .* 'pi05' is registered already",
        ),
    ],
)
def test_plugins_that_cannot_be_loaded(tmp_path, monkeypatch, source, message):
    monkeypatch.syspath_prepend(tmp_path)
    if source:
        (tmp_path / "plugin_under_test.py").write_text(source)
    with pytest.raises(ValueError, match=message):
        load_plugins(["plugin_example", "plugin_under_test"])


def test_loading_a_plugin_twice_does_nothing():
    before = available()
    load_plugins(["plugin_example", "plugin_example"])
    assert available() == before
    with pytest.raises(ValueError, match="'line' is registered already"):
        register_env("line", LineSuite)


def test_what_a_policy_needs_is_compared_with_what_there_is():
    features = toy_policy().features
    assert features.inputs_spec() == {
        "observation.images.front": ((None, None, 3), "uint8"),
        "observation.state": ((4,), "float32"),
        "action": ((3,), "float32"),
    }
    lerobot = {
        "observation.images.front": {"dtype": "video", "shape": (3, 64, 64)},
        "observation.state": {"dtype": "float32", "shape": (4,)},
        "action": {"dtype": "float32", "shape": [3]},
        "timestamp": {"dtype": "float32", "shape": (1,)},
    }
    features.require_inputs(lerobot, "data set demo")
    features.require_inputs(
        {**lerobot, "observation.images.front": {"dtype": "uint8", "shape": (8, 8, 3)}}, "x"
    )
    (task,) = LineSuite().tasks()
    with pytest.raises(ValueError, match=r"environment line/right does not offer") as error:
        features.require_inputs(task_features(task), "environment line/right")
    assert "observation.state: expected float32 (4,), found float32 (2,)" in str(error.value)
    assert "action: expected float32 (3,), found float32 (1,)" in str(error.value)
    del lerobot["observation.images.front"]
    with pytest.raises(ValueError, match=r"observation\.images\.front: missing; there are action, "):
        features.require_inputs(lerobot, "data set demo")
    assert PLAIN.inputs_spec()["images"] == ((1, 3, 3, 8, 8), "float32")

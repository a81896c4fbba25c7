"""The files of supervised training: the guide's keys, aliases, checks, and the commands that take them."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pi0.ript import policy_evaluation
from pi0.ript.commands import evaluate as evaluate_command
from pi0.ript.commands.advantage import read_mixture
from pi0.ript.config import ConfigError, load_config_from_yaml, validate_config
from pi0.ript.data.settings import AugmentationSettings
from pi0.ript.evaluation_checks import require_usable
from pi0.ript.evaluation_settings import EvaluationConfig
from pi0.ript.scripts import train as train_script
from pi0.ript.supervised import read_settings
from pi0.ript.supervised.checks import validate_settings
from pi0.ript.supervised.command_line import parse_settings

CONFIGS = Path(__file__).parent.parent / "configs"
MINIMAL = CONFIGS.parent / "pi0/ript/config/minimal_test.yaml"
MIXTURE = {
    "datasets": [
        {"repo_id": "physical-intelligence/libero", "episodes": [0, 1, 2]},
        {"repo_id": "OpenTau/libero-rollouts", "root": "some/rollouts"},
    ],
    "weights": [1.0, 1.0],
    "action_freq": 10.0,
    "image_resample_strategy": "nearest",
    "vector_resample_strategy": "nearest",
}
GUIDE_POLICY = {
    "type": "pi0",
    "pretrained_path": "lerobot/pi0",
    "advantage": "use",
    "advantage_threshold": -0.012345,
    "n_obs_steps": 1,
    "normalization_mapping": {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"},
    "tokenizer_max_length": 100,
}
GUIDE_VALUE = {
    "type": "value",
    "n_obs_steps": 1,
    "normalization_mapping": {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "VALUE": "MEAN_STD"},
    "max_state_dim": 32,
    "tokenizer_max_length": 52,
    "reward_config": {
        "number_of_bins": 201,
        "C_neg": -1000.0,
        "reward_normalizer": 1600,
        "N_steps_look_ahead": 50,
    },
}
GUIDE_ROLLOUT = {
    "policy": {"type": "pi0", "pretrained_path": "some/checkpoint", "n_obs_steps": 1},
    "env": {"suite": "libero", "task": "libero_10", "task_ids": [8], "num_envs": 1},
    "eval": {"num_episodes": 300, "save_videos": True, "save_rollouts": True},
}


def evaluation(path, *overrides: str) -> EvaluationConfig:
    """Return what pi0-eval makes of a file."""
    seen: list[EvaluationConfig] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy_evaluation, "evaluate_policy", seen.append)
        patch.setattr(evaluate_command, "check_evaluation", lambda _: None)  # nothing is there
        assert evaluate_command.main([f"--config_path={path}", *overrides]) == 0
    return seen[0]


@pytest.fixture
def written(tmp_path: Path):
    """Return a function that writes values as a JSON file."""

    def write(**values) -> str:
        path = tmp_path / "config.json"
        path.write_text(json.dumps(values))
        return str(path)

    return write


def test_the_guides_policy_file_is_taken_as_it_is(written, capsys):
    settings = read_settings(written(dataset_mixture=MIXTURE, policy=GUIDE_POLICY))
    validate_settings(settings)
    assert settings.policy.advantage_threshold == -0.012345
    assert settings.policy.normalization_mapping.ACTION == "MEAN_STD"
    assert [dataset.episodes for dataset in settings.dataset_mixture.datasets] == [[0, 1, 2], None]
    said = "keys under their present names: policy.pretrained_path -> policy_path\n"
    assert capsys.readouterr().out.endswith(f"config.json: {said}"), "one line, and no other"


def test_files_share_a_mixture_by_including_it(written, tmp_path):
    (tmp_path / "mixture.json").write_text(json.dumps(MIXTURE))
    (tmp_path / "demos.json").write_text(json.dumps({"root": "data/demos", "episodes": [0, 1]}))
    datasets = [{"$ref": "demos.json", "episodes": [5]}, {"root": "data/rollouts"}]
    shared = {"$ref": "mixture.json", "datasets": datasets, "weights": None}
    mixture = read_settings(written(dataset_mixture=shared)).dataset_mixture
    assert (mixture.action_freq, mixture.weights) == (10.0, None)
    assert [(one.root, one.episodes) for one in mixture.datasets] == [
        ("data/demos", [5]),
        ("data/rollouts", None),
    ]


def test_the_guides_value_file_is_taken_as_it_is(written):
    settings = read_settings(
        written(dataset_mixture=MIXTURE, policy=GUIDE_VALUE, loss_weighting={"MSE": 0, "CE": 1})
    )
    validate_settings(settings)
    reward = settings.policy.reward_config
    assert (reward.C_neg, reward.normalizer, reward.N_steps_look_ahead) == (-1000.0, 1600.0, 50)


def test_the_guides_rollout_file_becomes_an_evaluation_with_a_notice_of_its_keys(written, capsys):
    config = evaluation(written(**GUIDE_ROLLOUT), "--policy.pretrained_path=mine")
    assert (config.policy_path, config.task.benchmark_name, config.task.task_names) == (
        "mine",
        "libero_10",
        [8],
    )
    assert (config.eval.rollouts_per_task, config.eval.n_video, config.task.num_parallel_envs) == (300, 16, 1)
    assert config.eval.recording_root == "data/rollouts"
    said = capsys.readouterr().out
    for old, new in {
        "env.suite": "task.benchmark_name",
        "env.task_ids": "task.task_names",
        "env.num_envs": "task.num_parallel_envs",
        "eval.num_episodes": "eval.rollouts_per_task",
        "eval.save_videos": "eval.n_video",
        "eval.save_rollouts": "eval.recording_root",
    }.items():
        assert f"{old} -> {new}" in said
    assert "keys without effect:\n  policy.n_obs_steps: of training\n" in said
    assert said.count("\n") == 4, "three lines for the file, and one for the command line"


@pytest.mark.parametrize("name", ["sft_pi0", "value_pretrain", "value_finetune", "pi0_finetune"])
def test_our_training_files_are_usable(name, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    settings = read_settings(f"configs/{name}_config.json")
    start = settings.policy_path  # of an earlier stage, or toy
    assert start == "toy" or start.startswith("outputs/train/")
    validate_settings(replace(settings, policy_path="toy"))


def test_our_other_files_are_usable():
    config = evaluation(CONFIGS / "rollout_config.json")
    assert (config.eval.states, config.eval.recording_root) == ("train", "data/rollouts")
    described = read_mixture(CONFIGS / "advantage_calc_config.json")
    assert [x.root for x in described] == ["data/demonstrations", "data/rollouts"]


def test_other_trainers_keys(written):
    settings = read_settings(
        written(
            dataset_mixture=MIXTURE,
            policy={"train_expert_only": True, "prompt_max_length": 64},
            max_steps=7,
            action_chunk=10,
            last_checkpoint_only=True,
            wandb={"enable": True, "project": "mine"},
            use_policy_training_preset=True,
        )
    )
    assert (settings.steps, settings.policy.chunk_size, settings.save_total_limit) == (7, 10, 1)
    assert (settings.policy.freeze, settings.policy.tokenizer_max_length) == ("expert_only", 64)
    assert (settings.logging.use_wandb, settings.logging.wandb_project) == (True, "mine")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"polcy": {"type": "pi0"}}, "unknown key 'polcy.type'; did you mean 'policy.type'"),
        ({"policy": {"advantage_treshold": 1}}, "did you mean 'policy.advantage_threshold'"),
        ({"dataset_mixture": {"datasets": [{"repo": "x"}]}}, r"datasets\[0\]: unknown key 'repo'.*'repo_id'"),
        (
            {"dataset_mixture": {"datasets": [{"repo_id": [1]}]}},
            r"dataset_mixture.datasets\[0\].repo_id: expected text",
        ),
        ({"steps": "many"}, "steps: expected a whole number, found 'many'"),
        ({"policy": {"reward_config": {"C_neg": 5}}}, "C_neg: expected at most 0, found 5"),
        ({"steps": 3, "max_steps": 4}, "max_steps=4 contradicts steps=3"),
        (
            {"last_checkpoint_only": "yes please"},
            "found 'yes please'; use true or false, or save_total_limit",
        ),
    ],
)
def test_a_wrong_file_is_refused(written, values, message):
    with pytest.raises(ConfigError, match=message):
        read_settings(written(**values))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("policy.type=pi9", "policy.type: expected one of pi0, value, found 'pi9'"),
        ("policy.n_obs_steps=2", "policy.n_obs_steps: expected one of 1, found 2"),
        ("batch_size=0", "batch_size: expected at least 1"),
        ("gradient_accumulation_steps=0", "gradient_accumulation_steps: expected at least 1, found 0"),
        ("dataloader_batch_size=0", "dataloader_batch_size: expected at least 1, found 0"),
        ("optimizer.lr=0", "optimizer.learning_rate: expected a number above 0"),
        ("optimizer.betas=[0.9]", "optimizer.betas: expected two numbers"),
        ("gradient_accumulation_steps=5", "batch_size: expected a multiple of gradient_accumulation_steps=5"),
        ("ema_decay=1.0", "ema_decay: expected a share between 0 and 1"),
        ("exp_name=../x", "exp_name: expected a name for a directory"),
        ("policy.pretrained_path=nowhere", "policy_path: nothing at 'nowhere'"),
        ("policy.policy_path=toy", "policy.reads: belongs to a value function"),
        ("loss_weighting.MSE=0", "loss_weighting.MSE: a policy learns by"),
        ("eval_freq=5", "task.benchmark_name: expected an environment, such as metaworld, found none"),
        ("policy.awr_beta=0", "policy.awr_beta: expected a number above 0"),
        ("policy.missing_advantage=skip", "expected one of error, positive, negative, drop, found 'skip'"),
        ("eval.recording_root=x", "eval.recording_root: training keeps no rollouts"),
        ("policy.normalization_mapping.VISUAL=MEAN_STD", "VISUAL: expected one of IDENTITY"),
        ("dataset_mixture.weights=[1]", r"weights: expected one per data set \(2\), found 1"),
        ("device=gpu", "device: expected cpu, cuda"),
    ],
)
def test_wrong_settings_are_named(written, override, message):
    settings = read_settings(written(dataset_mixture=MIXTURE), [override])
    with pytest.raises(ConfigError, match=message):
        validate_settings(settings)


@pytest.mark.parametrize(
    ("overrides", "split"),
    [
        ([], "train"),
        (["eval.save_rollouts=false"], "heldout"),
        (["eval.states=heldout"], "heldout"),
        (["eval.save_rollouts=false", "eval.states=train"], "train"),
    ],
)
def test_rollouts_that_are_kept_begin_from_training_states(written, overrides, split):
    assert evaluation(written(**GUIDE_ROLLOUT), *overrides).eval.split == split


@pytest.mark.skipif("LIBERO_ASSETS" not in os.environ, reason="set LIBERO_ASSETS to LIBERO's assets")
def test_the_guides_300_rollouts_of_a_task_of_any_suite_can_be_recorded(written, tmp_path):
    """The document names the suite "libero"; its 50 held-out states do not limit what is recorded."""
    moka = {**GUIDE_ROLLOUT["env"], "task": "KITCHEN_SCENE8_put_both_moka_pots_on_the_stove"}
    del moka["task_ids"]
    path = written(**{**GUIDE_ROLLOUT, "env": moka})
    config = evaluation(path, "--policy.pretrained_path=toy", f"--output_dir={tmp_path}")
    (environment,) = require_usable(config)
    assert config.eval.rollouts_per_task == 300
    assert environment.options["suite"] == "libero_10"
    assert environment.suite().select(environment.tasks)[0].max_steps == 520
    with pytest.raises(ConfigError, match=r"50 held-out states per task.*; eval\.states=train has as many"):
        require_usable(evaluation(path, "--policy.pretrained_path=toy", "--eval.states=heldout"))


def test_what_a_command_reads_is_not_moved_aside_by_it(written, tmp_path):
    run = tmp_path / "runs/base"
    (run / "checkpoints/5").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (run / "checkpoints/5" / name).write_text("")
    base, places = str(run / "checkpoints/5"), [f"output_dir={tmp_path / 'runs'}", "exp_name=base"]
    path = written(dataset_mixture=MIXTURE, policy={"pretrained_path": base})
    training = read_settings(path, places)
    validate_settings(training)
    rung = load_config_from_yaml(MINIMAL, [f"policy_path={base}", *places])
    judged = evaluation(written(**GUIDE_ROLLOUT), f"--policy_path={base}", f"--output_dir={run}")
    said = r"policy_path: .*checkpoints/5 is in .*runs/base, which this command would move aside"
    with pytest.raises(ConfigError, match=said):
        validate_settings(replace(training, overwrite=True))
    for validate, config in ((validate_config, rung), (require_usable, judged)):
        with pytest.raises(ConfigError, match=said):
            validate(config)


def test_a_value_function_does_not_act(written):
    path = written(dataset_mixture=MIXTURE, policy=GUIDE_VALUE)
    with pytest.raises(ConfigError, match="eval_freq: a value function does not act"):
        validate_settings(read_settings(path, ["eval_freq=5", "env.type=metaworld"]))
    with pytest.raises(ConfigError, match=r"policy\.use_awr: weighs the samples of a policy"):
        validate_settings(read_settings(path, ["policy.use_awr=true"]))
    with pytest.raises(ConfigError, match="policy_path: expected the directory of a value function"):
        validate_settings(read_settings(path, ["policy.pretrained_path=nowhere"]))


def test_an_environment_is_checked_before_training(written):
    path = written(dataset_mixture=MIXTURE)
    with pytest.raises(ConfigError, match=r"task: unknown task 'buton-press-v3'.*button-press-v3"):
        validate_settings(
            read_settings(path, ["eval_freq=5", "env.type=metaworld", "env.task=buton-press-v3"])
        )


def test_the_command_line(written, capsys):
    path = written(dataset_mixture=MIXTURE)
    settings = parse_settings(
        [f"--config_path={path}", "--policy.advantage=on", "--steps", "3", "--overwrite", "optimizer.lr=1e-4"]
    )
    assert (settings.policy.advantage, settings.steps, settings.overwrite) == ("on", 3, True)
    assert (settings.optimizer.learning_rate, settings.exp_name) == (1e-4, None)
    with pytest.raises(SystemExit) as left:
        parse_settings([f"--config_path={path}", "--stepz=3", "--log_freq=0"])
    assert left.value.code == 2
    assert "did you mean 'steps'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse_settings(["--help"])
    assert "reward_config.N_steps_look_ahead=50" in capsys.readouterr().out


def test_groots_command_is_taken_as_it_is(tmp_path, capsys):
    """Requirement 002's command, word for word behind the name of its script."""
    (tmp_path / "base").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "base" / name).write_text("")
    words = f"""--base-model-path {tmp_path}/base --dataset-path data/mine --embodiment-tag NEW_EMBODIMENT
        --modality-config-path mine.py --num-gpus 1 --output-dir {tmp_path}/out --save-total-limit 5
        --save-steps 2000 --max-steps 2000 --use-wandb --global-batch-size 32 --color-jitter-params
        brightness 0.3 contrast 0.4 saturation 0.5 hue 0.08 --dataloader-num-workers 4"""
    made = parse_settings(words.split())
    assert (made.policy_path, made.output_dir) == (f"{tmp_path}/base", f"{tmp_path}/out")
    assert [dataset.root for dataset in made.dataset_mixture.datasets] == ["data/mine"]
    assert (made.save_total_limit, made.save_freq, made.steps, made.batch_size) == (5, 2000, 2000, 32)
    assert (made.logging.use_wandb, made.dataset_mixture.num_workers) == (True, 4)
    assert made.dataset_mixture.augmentation == AugmentationSettings(
        *(True, 1.0, 0.0), brightness=0.3, contrast=0.4, saturation=0.5, hue=0.08
    )
    assert made.policy.embodiment == "NEW_EMBODIMENT"
    assert "modality_config_path: a data set says what" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        parse_settings(words.replace("--num-gpus 1", "--num-gpus 2").split())
    assert "num_gpus: found 2; each GPU has a process: pi0-train --nproc-p" in capsys.readouterr().err


def test_opentaus_example_of_a_value_function_is_taken(written, capsys):
    """Keys of its configs/examples/value_config.json, which requirement 004 names, besides the guide's."""
    values = {
        "dataset_mixture": {**MIXTURE, "datasets": [{"repo_id": "someones/set"}, {"vqa": "clevr"}]},
        "policy": {**GUIDE_VALUE, "response_max_length": 52},
        "wandb": {
            **{"enable": True, "entity": "me", "project": "value-function", "mode": None, "tags": []},
            **dict.fromkeys(("run_id", "name", "group", "job_type", "notes")),
            **{"on_resume": "fork", "disable_artifact": False},
        },
        "optimizer": {"type": "adamw", "lr": 2.5e-5, "grad_clip_norm": 10.0, "betas": [0.9, 0.95]},
        **{"resume": False, "resolution": [224, 224], "num_cams": 2, "max_state_dim": 32},
    }
    settings = read_settings(written(**values))
    validate_settings(settings)
    assert [dataset.repo_id for dataset in settings.dataset_mixture.datasets] == ["someones/set"]
    assert (settings.dataset_mixture.weights, settings.dataset_mixture.image_size) == ([1.0], 224)
    assert "sets with 'vqa' are left out" in capsys.readouterr().out


def test_missing_data_and_accelerates_other_engines_are_one_line(written, tmp_path, monkeypatch, capsys):
    mixture = {"datasets": [{"repo_id": "x", "root": str(tmp_path / "nothing")}]}
    arguments = [f"--config_path={written(dataset_mixture=mixture)}", f"--output_dir={tmp_path / 'out'}"]
    assert train_script.main([*arguments, "--device=cpu"]) == 2
    assert "no LeRobotDataset: expected meta/info.json" in capsys.readouterr().err
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(SystemExit):
        train_script.main(arguments)
    assert "found DEEPSPEED" in capsys.readouterr().err


def test_a_run_that_did_not_begin_leaves_no_directory(written, tmp_path):
    """The newest directory of outputs/train is what the document's commands go on with."""
    mixture = {"datasets": [{"repo_id": "x", "root": str(tmp_path / "nothing")}]}
    words = [f"--config_path={written(dataset_mixture=mixture)}", f"--output_dir={tmp_path / 'out'}"]
    environment = {**os.environ, "PYTHONPATH": str(CONFIGS.parent)}
    done = subprocess.run(
        [sys.executable, train_script.__file__, *words, "--device=cpu"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("pi0-train: error: no LeRobotDataset"), "one line, no traceback"
    assert list((tmp_path / "out").iterdir()) == []


def test_pi0_eval_takes_a_file_or_options_but_not_both(written, capsys, monkeypatch):
    seen = []
    monkeypatch.setattr(policy_evaluation, "evaluate_policy", seen.append)
    path = written(**GUIDE_ROLLOUT)
    words = ["--eval.num_episodes=7", "--seed=3", "--device", "cpu"]
    assert evaluate_command.main([f"--config_path={path}", *words]) == 0
    assert evaluate_command.main(["--policy", "toy", "--env", "metaworld", "--states", "train"]) == 0
    assert [(c.eval.rollouts_per_task, c.eval.split) for c in seen] == [(7, "train"), (20, "train")]
    assert (seen[0].seed, seen[0].device) == (3, "cpu")
    assert evaluate_command.main([f"--config_path={path}", "--episodes", "7"]) == 2
    assert "keys of the file; write --eval.rollouts_per_task=VALUE" in capsys.readouterr().err
    assert evaluate_command.main([f"--config_path={path}", "--env-option", "hide_arm=true"]) == 2
    assert "--env-option: with --config_path, options are keys of the file; write --task.KEY=VALUE" in (
        capsys.readouterr().err
    )
    assert evaluate_command.main([f"--config_path={path}", "--eval.n_episode=7"]) == 2
    assert "did you mean 'eval.n_episodes'" in capsys.readouterr().err
    for arguments, message in ((["--env", "metaworld"], "--policy"), (["--polcy", "x"], "unrecognized")):
        with pytest.raises(SystemExit):
            evaluate_command.main(arguments)
        assert message in capsys.readouterr().err

"""Configuration: what files and command lines may say, and what is said about what they may not."""

import json
import os
import re
import runpy
import subprocess
import sys
from dataclasses import asdict, replace
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

from pi0.ript import config as config_package
from pi0.ript.config import ConfigError, TrainConfig, load_config_from_yaml, parse_config, save_config
from pi0.ript.config import validate_config as validate
from pi0.ript.config.aliases import EARLIER, OTHERS, WITHOUT_EFFECT
from pi0.ript.config.command_line import describe_keys
from pi0.ript.config.loading import PROFILES, default_values
from pi0.ript.environments import get_environment
from pi0.ript.recap import RecapConfig
from pi0.ript.supervised import SupervisedSettings

ROOT = Path(__file__).parent.parent
CONFIGS = Path(config_package.__file__).parent
MINIMAL = CONFIGS / "minimal_test.yaml"
ALIASES = [*EARLIER.items(), *OTHERS.items()]
LEGACY = Path(__file__).parent / "legacy_configs"


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    return file


def test_the_first_rung_has_the_same_defaults():
    first = asdict(runpy.run_path(str(ROOT / "8_train_with_epochs.py"))["AdvancedTrainingConfig"]())
    ours = default_values()
    theirs = {
        f"{section}.{key}".rstrip("."): value
        for section, values in first.items()
        for key, value in (values.items() if isinstance(values, dict) else [("", values)])
    }
    assert len(theirs) > 25
    assert {key: ours[key] for key in theirs if key != "exp_name"} == {
        key: value for key, value in theirs.items() if key != "exp_name"
    }


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
@pytest.mark.parametrize("profile", [None, *(file.stem for file in PROFILES.glob("*.yaml"))])
def test_the_files_of_the_package_load_and_are_valid_where_their_checkpoint_is(file, profile, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    config = load_config_from_yaml(file, profile=profile)
    assert config != TrainConfig()
    if config.policy_path == "toy":
        validate(config)
        return
    with pytest.raises(ConfigError) as error:
        validate(config)
    assert [problem[:23] for problem in error.value.problems] == ["policy_path: nothing at"]


def test_the_example_for_gpus_runs_here_with_the_overrides_in_its_header():
    file = CONFIGS / "train_pi0_cfg_rl.yaml"
    words = [word for line in file.read_text().splitlines() if line.startswith("#") for word in line.split()]
    overrides = [word for word in words if "=" in word and not word.startswith("--")]
    assert len(overrides) > 8
    validate(load_config_from_yaml(file, overrides, "dev"))


def test_every_setting_reaches_its_key_and_a_saved_configuration_is_the_same(tmp_path):
    overrides = [
        *(
            "algo.lr=1e-4",
            "--algo.grad_norm_clip=2e-1",
            "task.task_names=[3,button-press-v3]",
            "training.seed=7",
        ),
        *(
            "exp_name=2025-11-29/run_${training.seed}",
            "logging.wandb_entity=2024-01-01",
            "task.warm_start.steps=5",
        ),
    ]
    config = load_config_from_yaml(MINIMAL, overrides)
    validate(replace(config, task=replace(config.task, task_names=[3])))
    assert (config.algo.lr, config.algo.grad_norm_clip, config.exp_name) == (1e-4, 0.2, "2025-11-29/run_7")
    assert config.task.task_names == [3, "button-press-v3"]
    assert config.logging.wandb_entity == "2024-01-01"
    saved = save_config(config, tmp_path)
    assert saved == tmp_path / "experiment_cfg" / "config.yaml"
    assert load_config_from_yaml(saved) == config
    json.dumps(asdict(config))


@pytest.mark.parametrize(
    "text", ["012", "1e5", "1:30", "2026_11_28", "12e4567", "0x10", ".5", ".nan", "1_000", "on", "no", "true"]
)
def test_text_keys_keep_their_text_and_a_saved_configuration_too(tmp_path, text):
    config = load_config_from_yaml(write(tmp_path, f"exp_name: {text}\n"), [f"logging.wandb_entity={text}"])
    assert (config.exp_name, config.logging.wandb_entity) == (text, text)
    assert load_config_from_yaml(save_config(config, tmp_path)) == config


def test_numbers_are_what_they_look_like_and_words_are_switches(tmp_path):
    config = load_config_from_yaml(
        write(
            tmp_path,
            "training: {num_train_steps: 1e5, seed: 012}\nalgo: {enable_rollout_stats_tracking: on}\n",
        ),
        ["algo.lr=1", "training.save_freq=1_000", "task.task_names=[3, a, '4']"],
    )
    assert (config.training.num_train_steps, config.training.seed, config.training.save_freq) == (
        100000,
        12,
        1000,
    )
    assert config.algo.enable_rollout_stats_tracking is True
    assert repr(config.algo.lr) == "1.0"
    assert config.task.task_names == [3, "a", "4"]


def test_bare_flags_are_true_and_home_is_expanded_everywhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, MINIMAL.read_text())
    for words, expected in {
        "--logging.use_wandb": True,
        "--logging.use_wandb algo.lr=1e-5": True,
        "--logging.use_wandb false": False,
        "--logging.use_wandb=off": False,
        "--logging.use_wandb --algo.lr 1e-5": True,
    }.items():
        config = parse_config(["--config_path", "~/config.yaml", *words.split(), "--output_dir=~/runs"])
        assert config.logging.use_wandb is expected, words
        assert config.output_dir == str(tmp_path / "runs")


def test_sections_are_arguments_of_what_they_configure():
    task = load_config_from_yaml(MINIMAL, ["task.benchmark_name=libero_goal", "task.camera_names=[a,b]"]).task
    environment = get_environment(**asdict(task))
    hash(environment.suite())
    assert environment.suite().tasks()[0].cameras == ("a", "b")
    assert environment.warm_start["steps"] == 80
    own = get_environment("libero_goal").warm_start["chunk_size"]
    assert environment.warm_start["chunk_size"] == own, "null leaves the environment's own"


def test_the_order_is_file_profile_command_line(tmp_path):
    file = write(tmp_path, "algo: {lr: 1e-4, rloo_batch_size: 9, data_batch_size: 9}\n")
    config = load_config_from_yaml(file, ["algo.data_batch_size=3"], "dev")
    assert (config.algo.lr, config.algo.rloo_batch_size, config.algo.data_batch_size) == (1e-4, 3, 3)


def test_command_lines_are_written_in_several_ways(capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    path = ["--config_path", str(MINIMAL)]
    expected = load_config_from_yaml(MINIMAL, ["algo.lr=2e-5", "eval.first_state=3"])
    for words in (
        ["algo.lr=2e-5", "eval.first_state=3"],
        ["--algo.lr=2e-5", "--eval.first_state", "3"],
        ["--override", "algo.lr=2e-5", "eval.first_state=3"],
        ["--override", "algo.lr=2e-5", "--override", "eval.first_state=3"],
        ["--lr", "2e-5", "--eval.first_state", "3"],
    ):
        assert parse_config([*path, *words]) == expected
    printed = capsys.readouterr().out
    assert f"✓ 配置文件加载成功 / configuration loaded: {MINIMAL}\n" in printed
    assert "✓ 配置验证通过 / configuration valid\n" in printed
    assert parse_config([*path, "--resume"], resumes=True).resume == "auto"
    assert parse_config([*path, "--resume", "algo.lr=2e-5", "eval.first_state=3"], resumes=True) == replace(
        expected, resume="auto"
    )
    assert parse_config([*path, "--resume", str(CONFIGS)], resumes=True).resume == str(CONFIGS)
    capsys.readouterr()
    monkeypatch.setenv("RANK", "1")
    parse_config(path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "expected a YAML file, for example: --config_path pi0/ript/config/debug_train_pi0.yaml"),
        (
            ["--config_path", str(MINIMAL.with_stem("minmal_test"))],
            "did you mean pi0/ript/config/minimal_test",
        ),
        (["--config_path", "none.yaml"], "there are: "),
        (["algo.lrr=1"], "unknown key 'algo.lrr'; did you mean 'algo.lr'?"),
        (["algo.steps=1"], "algo has: rloo_batch_size"),
        (["rloo_batch_size=3"], "did you mean 'algo.rloo_batch_size'"),
        (["algo.lr=fast"], "command line: algo.lr: expected a number, found 'fast'"),
        (["algo.lr=null"], "algo.lr: expected a number, found null"),
        (["algo.num_epochs=1.5"], "algo.num_epochs: expected a whole number, found 1.5"),
        (["algo.num_epochs=true"], "algo.num_epochs: expected a whole number, found true"),
        (["algo.lr=.nan"], "algo.lr: expected a number, found .nan"),
        (["algo.num_epochs=1:30"], "algo.num_epochs: expected a whole number, found 1:30"),
        (["exp_name=[a]"], "exp_name: expected text, found ['a']"),
        (["task.task_names=3"], "expected a list of text or a whole number, such as [a,b], or null, found 3"),
        (["algo=3"], "algo: expected a section with keys such as rloo_batch_size, found 3"),
        (["algo.lr={a: 1}"], "algo.lr: expected a value, found the section {a: ...}"),
        (["algo.lr=${algo.nothing}"], "algo.lr: '${algo.nothing}' stands for nothing that fits"),
        (["algo.lr=${exp_name}"], "could not be converted to Float"),
        (["algo.lr=[1"], "command line, algo.lr, line 1: this is not YAML"),
        (["--algo.lr"], "algo.lr: expected a number, found true"),
        (
            ["--algo.lr", "1e-4", "2", "3"],
            "expected --algo.lr VALUE, or names and values, found ['1e-4', '2',",
        ),
        (["stray"], "expected key=value, found 'stray'"),
        (["--profile", "develop"], "unknown profile 'develop'; did you mean 'dev'?"),
        (["distributed.fp16=true"], "use policy.dtype=bfloat16"),
        (["algo.rloo_batch_size=1"], "use algo.rloo_batch_size=8"),
        (["algo.max_sampling_attempts=2"], "use algo.max_sampling_attempts=8"),
        (["device=gpu"], "device: expected cpu, cuda, cuda:1, ... or auto, found 'gpu'"),
    ],
    ids=lambda value: " ".join(value)[-30:] if isinstance(value, list) else "",
)
def test_a_wrong_command_line_ends_with_code_2_and_one_message(words, said, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    if words and words[0] != "--config_path":
        words = ["--config_path", str(MINIMAL), *words]
    with pytest.raises(SystemExit) as stop:
        parse_config(words)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("algo.lr=0", "algo.lr: expected a number above 0, found 0"),
        ("algo.data_batch_size=0", "algo.data_batch_size: expected at least 1, found 0"),
        ("eval.n_video=-1", "eval.n_video: expected 0 or more, found -1"),
        ("training.memory_limit_gb=0", "training.memory_limit_gb: expected a number above 0"),
        ("policy.dtype=float16", "policy.dtype: expected one of float32, bfloat16, found 'float16'"),
        ("policy.freeze=visoin", "policy.freeze: 'visoin' matches no parameter"),
        ("policy.freeze='a('", "policy.freeze: 'a(' is no regular expression"),
        ("policy.n_action_steps=9", "expected at most the toy's 8 actions"),
        ("policy.extra_delta_transform=true", "use policy.extra_delta_transform=null"),
        ("policy.statistics_path=nothing.json", "policy.statistics_path: no file at 'nothing.json'"),
        ("policy_path='{pi0_model_path}'", "nobody filled in the placeholder '{pi0_model_path}'"),
        ("policy_path=./nothing", "policy_path: nothing at './nothing'"),
        ("policy_path=tests", "policy_path: 'tests' has no config.json and no model.safetensors"),
        ("task.benchmark_name=metawrld", "unknown benchmark_name 'metawrld'; did you mean 'metaworld'"),
        ("task.task_names=[buton-press-v3]", "unknown task 'buton-press-v3'; did you mean 'button-press-v3'"),
        ("task.task_names=[50]", "expected a number from 0 to 49, found 50"),
        ("task.task_names=[]", "task.task_names: expected names or numbers, found an empty list"),
        ("task.render_size=64", "unknown option of environment 'metaworld': 'render_size'"),
        ("task.warm_start.operator=hesitate", "unknown operator 'hesitate'; did you mean 'hesitating'"),
        ("task.warm_start.steps=0", "task.warm_start.steps: expected at least 1, found 0"),
        ("distributed.backend=mpi", "distributed.backend: expected one of auto, gloo, nccl, found 'mpi'"),
        (
            "logging.on_event='no-such-program now'",
            "logging.on_event: expected a command, quoted as for a shell",
        ),
        ('logging.on_event="echo \'unclosed"', "logging.on_event: expected a command, quoted as for a shell"),
        ("logging.wandb_mode='off'", "expected one of online, offline, disabled, found 'off'"),
        ("exp_name=a/../b", "exp_name: expected a name for a directory"),
        ("exp_name=/b", "exp_name: expected a name for a directory"),
        ("output_dir=README.md/runs", "output_dir: expected a directory, found 'README.md'"),
        ("resume=nothing", "resume: nothing at 'nothing'"),
    ],
)
def test_wrong_values_are_refused(override, said, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load_config_from_yaml(MINIMAL, [override])
    with pytest.raises(ConfigError) as error:
        validate(config)
    assert said in str(error.value)


def test_all_problems_are_told_at_once():
    with pytest.raises(ConfigError) as error:
        load_config_from_yaml(MINIMAL, ["algo.lrr=1", "evl.n_video=3", "algo.num_epochs=x"])
    assert len(error.value.problems) == 3
    config = load_config_from_yaml(MINIMAL, ["algo.lr=-1", "training.seed=-1", "task.benchmark_name=moon"])
    with pytest.raises(ConfigError, match=r"^3 problems:\n  - algo\.lr: "):
        validate(config)


LIBERO = ["task.benchmark_name=libero_goal", "task.task_names=[put_the_bowl_on_the_plate]"]


def test_libero_has_an_end_of_held_out_states():
    validate(load_config_from_yaml(MINIMAL, [*LIBERO, "eval.first_state=43"]))
    with pytest.raises(ConfigError, match="libero has 50 held-out states per task"):
        validate(load_config_from_yaml(MINIMAL, [*LIBERO, "eval.first_state=44"]))


@pytest.mark.parametrize(
    ("override", "gpus", "said"),
    [
        ("device=auto", 0, "device: cpu (auto: no CUDA device was found)\n"),
        ("device=auto", 1, "device: cuda (auto: a GPU is there)\n"),
        ("device=cpu", 1, "device: cpu (as the settings ask)\n"),
    ],
)
def test_which_device_is_used_and_why_is_told(override, gpus, said, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    parse_config(["--config_path", str(MINIMAL), override])
    assert capsys.readouterr().out.endswith(said)


def test_files_that_ask_for_nccl_run_on_a_cpu_with_a_notice(tmp_path, capsys):
    """Earlier files name nccl and no device: the device is then whatever the machine has."""
    file = write(tmp_path, "distributed: {backend: nccl}\ntask: {task_name: null}\n")
    config = parse_config(["--config_path", str(file)])
    assert config.device == "auto"
    said = capsys.readouterr().out
    assert said.endswith("distributed.backend: gloo in place of nccl, which is for GPUs\n")
    assert "device: cpu (auto" in said


def test_accelerates_mixed_precision_is_the_dtype_or_an_error(monkeypatch, capsys):
    words = ["--config_path", str(MINIMAL)]
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert parse_config(words).policy.dtype == "bfloat16"
    assert "policy.dtype: bfloat16, as accelerate's mixed_precision asks" in capsys.readouterr().out
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert parse_config(words).policy.dtype is None
    for asked, dtype in (("fp16", "null"), ("bf16", "float32")):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
        with pytest.raises(SystemExit):
            parse_config([*words, f"policy.dtype={dtype}"])
        assert "error: accelerate's mixed_precision" in capsys.readouterr().err


def test_a_toy_needs_tasks_that_somebody_demonstrates():
    with pytest.raises(
        ConfigError, match=r"nobody can demonstrate turn_on_the_stove; .*put_the_bowl_on_the_"
    ):
        validate(load_config_from_yaml(MINIMAL, [LIBERO[0], "task.task_names=[7]"]))
    with pytest.raises(ConfigError, match="task_names of another benchmark"):
        validate(load_config_from_yaml(MINIMAL, ["task.benchmark_name=libero_10"]))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("algo:\n  lr: 1e-4\n  num_draws: 2\n  lr: 1e-5\n", "the key 'lr' is there twice, in lines 2 and 4"),
        ("algo: [1\nb: 2\n", "line 2: this is not YAML"),
        ("- a\n", "expected keys and values, found a list"),
        ("policy_path: {checkpoint}\n", "a text with braces needs quotes"),
    ],
)
def test_wrong_files_are_refused(text, said, tmp_path):
    with pytest.raises(ConfigError) as error:
        load_config_from_yaml(write(tmp_path, text))
    assert said in str(error.value)


def test_files_include_others(tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/algo.yaml").write_text("lr: 1e-4\nnum_epochs: 3\n")
    (tmp_path / "parts/base.json").write_text(
        '{"algo": {"$ref": "algo.yaml", "num_epochs": 2}, "task": {"task_names": [1, 2]}, "exp_name": "base"}'
    )
    text = "$ref: parts/base.json\nalgo: {num_draws: 5}\ntask: {task_names: [3]}\n"
    config = load_config_from_yaml(write(tmp_path, text), ["algo.lr=2e-4"])
    assert (config.algo.lr, config.algo.num_epochs, config.algo.num_draws) == (2e-4, 2, 5)
    assert (config.task.task_names, config.exp_name) == ([3], "base")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("$ref: other.yaml", r"other.yaml includes itself \(config.yaml -> other.yaml -> other.yaml\)"),
        ("algo: {$ref: config.yaml}", r"config.yaml includes itself \(config.yaml -> config.yaml\)"),
        ("$ref: othr.yaml", r"config.yaml: \$ref: '.*othr.yaml' does not exist .* did you mean .*other.yaml"),
        ("$ref: [a]", r"expected the name of a file, found \['a'\]"),
        ("algo: {$ref: typo.yaml}", "unknown key 'algo.lrr'; did you mean 'algo.lr'"),
    ],
)
def test_includes_that_cannot_be_used(tmp_path, text, said):
    (tmp_path / "other.yaml").write_text("algo: {$ref: other.yaml}")
    (tmp_path / "typo.yaml").write_text("lrr: 1")
    with pytest.raises(ConfigError, match=said):
        load_config_from_yaml(write(tmp_path, text))


def test_empty_files_and_sections_are_defaults(tmp_path):
    assert load_config_from_yaml(write(tmp_path, "")) == TrainConfig()
    assert load_config_from_yaml(write(tmp_path, "algo:\nlogging: {}\n")) == TrainConfig()


def load_legacy(name: str, capsys) -> tuple[TrainConfig, str]:
    config = load_config_from_yaml(LEGACY / f"{name}.yaml")
    return config, capsys.readouterr().out


def test_files_of_earlier_versions_load(capsys):
    debug, said = load_legacy("debug", capsys)
    assert (debug.algo.rloo_batch_size, debug.algo.lr, debug.task.task_names) == (1, 1e-5, None)
    assert debug.policy.statistics_path == "./norm_stats/norm_stats.json"
    assert "norm_stats_path -> policy.statistics_path" in said
    assert "algo.{enable_dynamic_sampling" in said.split("keys without effect:\n")[1]
    train, said = load_legacy("train_cfg_rl", capsys)
    assert train.task.task_names == ["put_the_wine_bottle_on_top_of_the_cabinet"]
    assert (train.policy.dtype, train.eval.rollouts_per_task) == ("bfloat16", 10)
    style, said = load_legacy("ript_vla_style", capsys)
    assert (style.algo.data_batch_size, style.algo.micro_batch_size) == (6, 8)
    assert "algo.data_batch_size=2 gives way to algo.demo_batch_size=6" in said
    assert style.task.task_names == ["pick_up_the_black_bowl_on_the_stove_and_place_it_on_the_plate", 3]
    spread, said = load_legacy("distributed", capsys)
    assert spread.exp_name == "distributed_libero_goal_seed42"
    assert (spread.task.task_names, spread.resume, spread.training.keep_last) == ([9], "auto", 5)
    assert (spread.policy.freeze, spread.policy.dtype) == ("expert_only", "bfloat16")
    assert (spread.policy.gradient_checkpointing, spread.eval.cfg_guidance_scale) == (True, 3.0)
    assert spread.algo.weight_decay == 0.01
    assert (spread.algo.lr, spread.algo.num_epochs) == (2e-5, 4), "present names win over duplicates"
    assert "optimizer.lr=0.0001 gives way to algo.lr=2e-05" in said


def test_keys_that_change_a_result_are_honoured_or_refused(tmp_path):
    optimizer = "training: {optimizer: {type: %s, weight_decay: %s, beta1: 0.8, beta2: 0.999, momentum: 0.9}}"
    algo = load_config_from_yaml(write(tmp_path, optimizer % ("AdamW", 0.01))).algo
    assert (algo.weight_decay, algo.beta1, algo.beta2) == (0.01, 0.8, 0.999)
    assert load_config_from_yaml(write(tmp_path, optimizer % ("Adam", 0.0))).algo.weight_decay == 0
    windows = "dataset: {windowing_mode: %s, window_stride: 50, max_windows_per_episode: 2, %s}"
    for mode, more, expected in (
        ("slide", "", (50, 2)),
        ("last", "", (50, 1)),
        ("last", "use_so100_processing: true, max_samples_per_trajectory: 100", (1, 100)),
    ):
        dataset = load_config_from_yaml(write(tmp_path, windows % (mode, more))).dataset
        assert (dataset.window_stride, dataset.max_windows_per_episode) == expected
    for text, said in (
        (optimizer % ("Adam", 0.01), "weight_decay=0.01 contradicts training.optimizer.type=0.0; keep one"),
        (optimizer % ("SGD", 0.0), "found 'SGD'; use AdamW, or Adam, which is AdamW without weight decay"),
        (windows % ("random", ""), "dataset.windowing_mode: found 'random'; use last or slide"),
        ("optimizer: {lr_schedule: cosine}", "found 'cosine'; algo.lr falls linearly"),
    ):
        with pytest.raises(ConfigError, match=re.escape(said)):
            load_config_from_yaml(write(tmp_path, text))


def test_keys_without_effect_are_a_short_table(tmp_path, capsys):
    text = "features: {a: 1, b: {c: 2}}\nalgo: {ppo_clip_range: 0.2, deterministic: true, temperature: 1}\n"
    load_config_from_yaml(write(tmp_path, text))
    assert capsys.readouterr().out.splitlines()[1:] == [
        "  algo.ppo_clip_*: of PPO, and RIPT makes one update per mini-batch",
        "  algo.{deterministic, temperature}: actions are always sampled",
        "  features.*: belongs to another program",
    ]


def test_an_old_key_on_the_command_line_wins_over_the_file():
    assert load_config_from_yaml(MINIMAL, ["algo.demo_batch_size=5"]).algo.data_batch_size == 5
    assert (
        load_config_from_yaml(LEGACY / "debug.yaml", ["norm_stats_path=null"]).policy.statistics_path is None
    )


@pytest.mark.parametrize("schema", [TrainConfig, RecapConfig, SupervisedSettings])
def test_an_alias_hides_no_key(schema):
    known = default_values(schema)
    assert not [old for old, alias in ALIASES if alias.key in known and old in known]


def test_every_alias_is_of_some_use():
    schemas = (TrainConfig, RecapConfig, SupervisedSettings)
    known = {key for schema in schemas for key in default_values(schema)}
    assert {alias.key for _, alias in ALIASES} <= {*known, ""}
    patterns = [pattern for group in WITHOUT_EFFECT.values() for pattern in group]
    assert len(set(patterns)) == len(patterns)
    assert not [key for key in default_values() for pattern in patterns if fnmatch(key, pattern)]


def test_help_lists_every_key_with_its_default_and_meaning():
    text = describe_keys()
    assert not [key for key in default_values() if f" {key}=" not in text]
    assert "algo.rloo_batch_size=8 " in text
    assert "rollouts from each initial state (K)" in text


def test_a_script_without_checkpoints_refuses_to_resume(capsys):
    arguments = ["--config_path", str(MINIMAL), "--resume"]
    with pytest.raises(SystemExit) as stop:
        parse_config(arguments)
    assert stop.value.code == 2
    assert "resume:" in capsys.readouterr().err
    assert parse_config(arguments, resumes=True).resume == "auto"


def test_a_files_automatic_resume_is_for_the_rungs_that_can(tmp_path, capsys):
    file = tmp_path / "earlier.yaml"
    file.write_text(f"{MINIMAL.read_text()}\nfault_tolerance: {{auto_resume: true}}\n")
    path = ["--config_path", str(file)]
    assert parse_config(path, resumes=True).resume == "auto"
    capsys.readouterr()
    assert parse_config(path).resume is None
    assert "resume: the file's auto has no effect" in capsys.readouterr().out
    for asked in ("resume=auto", f"resume={tmp_path}"):
        with pytest.raises(SystemExit):
            parse_config([*path, asked])
        assert "keeps no checkpoints; leave it out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        ("CheckpointError('model.safetensors: 3 tensors are missing')", 1, "error: model.safetensors: 3 ten"),
        ("NonFiniteLossError('3 steps in a row')", 1, "error: 3 steps in a row\n"),
        ("KeyboardInterrupt", -2, "interrupted\n"),
        ("ValueError('a fault of ours')", 1, "Traceback (most recent call last):"),
    ],
)
def test_what_explains_itself_ends_a_rung_in_one_line(raised, code, said):
    program = f"""
from pi0.ript.config import parse_config
from pi0.ript.monitoring import NonFiniteLossError
from pi0.tensor_files import CheckpointError
parse_config(["--config_path", {str(MINIMAL)!r}])
raise {raised}
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    assert said in done.stderr
    assert ("Traceback" in done.stderr) == ("ours" in raised)

"""The whole of RECAP on a shrunk demo: interrupted after every stage and inside them, it comes to one end."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import reader_oracle
import recap_runs
from conftest import CAMERA, opened
from recap_runs import DEMO, SHRUNK, hashes
from small_sets import ACTION, SIDE, STATE, draft, write

from pi0 import FeatureConfig, PI0Policy
from pi0.ript.config import ConfigError, load_config_from_yaml, parse_config
from pi0.ript.distributed import World
from pi0.ript.envs.libero_files import MissingAssetsError
from pi0.ript.files import hash_file
from pi0.ript.labels.advantages import read_advantages, read_lineage
from pi0.ript.labels.mixture import Mixture
from pi0.ript.recap import RECAP, RecapConfig, rounds
from pi0.ript.recap.budget import BudgetError, budget, print_budget
from pi0.ript.recap.data import open_sources
from pi0.ript.recap.report import refresh_recap_report
from pi0.ript.recap.validation import validate_recap
from pi0.ript.run_logging import close_run_logging
from train_ript_pi0_final import fit

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
STAGES = [
    *("demonstrations", "sft", "value", "sft-evaluation"),
    *(f"round-1/{stage}" for stage in ("rollouts", "value", "advantages", "policy", "validation")),
    *("sft-validation", "round-1/validation-guidance-1", "round-1/evaluation"),
    *(f"round-2/{stage}" for stage in ("rollouts", "value", "advantages", "policy", "validation")),
    *("round-2/validation-guidance-1", "round-2/evaluation"),
    *("baseline-more-sft/policy", "baseline-successes/policy"),
    "baseline-filtered/round-2/rollouts",  # no success to imitate: its policy stays that of SFT
    *("baseline-more-sft/evaluation", "baseline-successes/evaluation"),
]


@pytest.fixture
def run():
    """The script, run in this process, whose signal handlers it replaces."""
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    yield recap_runs.run
    close_run_logging()
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    directory = tmp_path_factory.mktemp("recap")
    command = [sys.executable, str(ROOT / "tests/recap_runs.py"), str(directory)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    seeds = {"whole": "1", "interrupted": "2"}  # nothing may depend on the order of a set
    processes = [
        subprocess.Popen([*command, which], cwd=ROOT, env=environment | {"PYTHONHASHSEED": seed})
        for which, seed in seeds.items()
    ]
    assert [process.wait() for process in processes] == [0, 0]
    found = {}
    for which in seeds:
        found |= json.loads((directory / f"{which}.json").read_text())
    return found | {"directory": directory}


@pytest.fixture(scope="module")
def whole(outcome):
    return outcome["directory"] / "whole", outcome["whole"]


def test_the_run_has_every_stage_and_names_what_each_was_made_from(whole):
    directory, stages = whole
    assert list(stages) == STAGES
    used = {name: {i["stage"] for i in record["inputs"].values()} for name, record in stages.items()}
    assert used["round-2/rollouts"] == {"round-1/policy"}
    assert used["round-2/policy"] == {
        *("round-1/policy", "round-2/advantages", "demonstrations", "round-1/rollouts", "round-2/rollouts")
    }
    assert used["round-2/value"] >= {"sft", "value"}
    assert used["round-2/evaluation"] == {"round-2/policy"}
    for record in stages.values():
        for source in record["inputs"].values():
            assert source["hash"] == stages[source["stage"]]["output"]["hash"]
    run_dir = directory / "demo"
    results = json.loads((run_dir / "results.json").read_text())
    directories = {"SFT": "sft", "round 1": "round-1/policy", "round 2": "round-2/policy"}
    chosen = directories[results["published"]]
    published, own = (json.loads((run_dir / x / "pi0_config.json").read_text()) for x in ("policy", chosen))
    assert published == own | {"guidance": results["guidance"]}
    weights = [hash_file(run_dir / x / "model.safetensors") for x in ("policy", chosen)]
    assert weights[0] == weights[1]
    # Of equal ones the own guidance; what was not chosen is there too.
    assert results["guidance"] == (1.0 if chosen == "sft" else 3.0)
    for number in (1, 2):
        tried = [f"round-{number}/{x}" for x in ("validation", "validation-guidance-1", "evaluation")]
        guidances = [stages[name]["settings"]["eval"]["cfg_guidance_scale"] for name in tried]
        assert guidances == [3.0, 1.0, 3.0]
    counts = [stages[f"{x}validation"]["figures"]["num_successes"] for x in ("sft-", "round-1/", "round-2/")]
    assert list(directories.values()).index(chosen) == max(range(3), key=lambda i: (counts[i], i))
    rivals = ["more SFT", "SFT on successes", "filtered, round 1", "filtered, round 2"]
    assert list(results["policies"]) == ["SFT", "round 1", "round 2", *rivals]
    assert used["baseline-filtered/round-2/rollouts"] == {"sft"}
    assert not (run_dir / "images").exists(), "decoded images are not kept"
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[1]["rollout/success"] == stages["round-2/rollouts"]["figures"]["success"]


def test_rollouts_are_a_data_set_with_lineage_and_labels(whole):
    directory, stages = whole
    root = directory / "demo"
    episodes = opened(root / "round-2/rollouts/dataset")
    assert episodes.num_episodes == 4
    assert len({(one.initial_state_hash, one.seed) for one in episodes.labels}) == 4
    assert len({one.initial_state_hash for one in episodes.labels}) == 2
    first = opened(root / "round-1/rollouts/dataset")
    seen = [{one.initial_state_hash for one in each.labels} for each in (first, episodes)]
    assert not seen[0] & seen[1], "every round has states of its own"
    policy = stages["round-1/policy"]["output"]["hash"]
    assert {one.source for one in episodes.labels} == {f"policy:{policy[:16]}"}
    labels = root / "round-2/advantages/rollouts-2"
    assert len(read_advantages(labels, episodes)) == episodes.lengths.sum()
    assert read_lineage(labels)["value"] == stages["round-2/value"]["output"]["hash"]
    figures = stages["round-2/advantages"]["figures"]
    assert read_lineage(labels)["epsilon"] == figures["epsilon"]
    assert figures["coverage"] == 1.0


def test_what_is_finished_is_skipped(outcome):
    assert outcome["again"] == outcome["whole"]
    assert outcome["skipped"] == len(STAGES)


def test_what_is_finished_is_told_again_without_simulators_and_drawing(whole, tmp_path):
    run_dir, notes = whole[0] / "demo", tmp_path / "notes"
    refresh_recap_report(run_dir, STAGES)
    page = run_dir / "report.html"
    written = page.stat().st_mtime_ns
    words = [f"--config_path={DEMO}", f"output_dir={run_dir.parent}", *SHRUNK]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "tests/heavy_imports", ROOT))),
        # The header imports torch.
        "HEAVY_PACKAGES": "lerobot transformers mujoco metaworld matplotlib wandb",
        "HEAVY_IMPORTS": str(notes),
    }
    command = [sys.executable, "train_ript_pi0_final.py", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, notes.exists()) == (0, False), done.stderr[-3000:]
    assert done.stdout.count("up to date, skipped") == len(STAGES)
    assert page.stat().st_mtime_ns == written
    refresh_recap_report(run_dir, STAGES[:-1])
    assert page.stat().st_mtime_ns > written, "another configuration has another page"


def test_killed_after_every_stage_it_comes_to_the_same_end(outcome):
    assert outcome["deaths"] >= len(STAGES) // 2
    assert outcome["killed"] == hashes(outcome["whole"])


def test_stopped_inside_training_and_recording_it_comes_to_the_same_end(outcome):
    assert outcome["stops"] >= 4
    assert outcome["stopped"] == hashes(outcome["whole"])


def test_a_changed_configuration_is_refused_or_redone(whole, tmp_path, run):
    shutil.copytree(whole[0], tmp_path / "copy")
    place = tmp_path / "copy"
    with pytest.raises(SystemExit, match=r"training.steps: made with 4, now 5"):
        run(place, "finetuning.training.steps=5", "rounds=1", "filtered_rounds=0", "baselines=false")
    redone = run(
        place,
        "finetuning.training.steps=5",
        "rounds=1",
        "filtered_rounds=0",
        "baselines=false",
        "on_stale=redo",
    )
    before = hashes(whole[1])
    changed = {name for name, value in hashes(redone).items() if value != before[name]}
    assert changed == {"round-1/policy", "round-1/evaluation"}
    assert PI0Policy.from_pretrained(place / "demo/round-1/policy.1")
    page = (place / "demo/report.html").read_text()
    assert "round-1/policy" in page
    assert "round-2/" not in page, "the report is of the rounds of this configuration"
    labels = place / "demo/sft/config.json"
    labels.write_text(labels.read_text() + "\n")
    with pytest.raises(SystemExit, match="its files have been changed"):
        run(place, "finetuning.training.steps=5", "rounds=1", "filtered_rounds=0", "baselines=false")


def test_a_gate_stops_the_run_before_the_policy_is_trained(whole, tmp_path, run):
    shutil.copytree(whole[0], tmp_path / "copy")
    with pytest.raises(SystemExit, match=r"error: [\s\S]*value function: (fails|undecided)"):
        run(tmp_path / "copy", "gates.min_concordance=1.1")


class CaughtError(Exception):
    """With what was to be trained on."""


def caught(objective, mixture, *rest):
    raise CaughtError(mixture)


def test_what_is_held_out_stays_so_when_a_value_function_is_trained_further(whole, tmp_path):
    """Otherwise the value functions of later rounds would be judged on what the first has seen."""
    place = Path(shutil.copytree(whole[0], tmp_path / "copy")) / "demo"
    run = rounds.start_run(config_of(f"output_dir={tmp_path}"), place, World(), caught)
    data = [rounds.obtain_demonstrations(run)]
    sft = rounds.fit_demonstrations(run, data[0])
    start = rounds.fit_value(run, sft, data)
    demonstrations = range(opened(data[0].path / "dataset").num_frames)
    data.append(rounds.collect(run, 1, sft))
    held = []
    for stage, arguments in (("round-1/value", (data, start, 1)), ("value", (data[:1],))):
        shutil.rmtree(place / stage)
        with pytest.raises(CaughtError) as trained:
            rounds.fit_value(run, sft, *arguments)
        (mixture,) = trained.value.args
        held.append(set(demonstrations) - set(mixture.draw(4000, (0,)).tolist()))
    assert held[0] == held[1]
    assert 0 < len(held[0]) < len(demonstrations)
    run.close()


def test_demonstrations_made_elsewhere_stream_and_stay_open_from_stage_to_stage(tmp_path, capsys):
    made = draft([5, 4, 6], fps=29.97)
    made.names = {STATE: "state", ACTION: "actions", CAMERA: "image"}
    made.rows[2]["task_index"] = 1  # two instructions in an episode
    made.meta(0)["tasks"].append("do thing 1")
    root = write(made, tmp_path / "set")
    names = "{" + ",".join(f"{key}: {name}" for key, name in made.names.items()) + "}"
    recording = ("demonstrations.episodes=null", "demonstrations.operator=null")
    size = 3 * SIDE * SIDE + 1
    overrides = [f"demonstrations.root={root}", f"demonstrations.data_features_name_mapping={names}",
                 *recording, "demonstrations.quality.hesitation=null", "demonstrations.num_workers=0",
                 f"dataset_mixture.cache_gib={7 * size / 2**30}", f"output_dir={tmp_path}"]  # fmt: skip
    config = config_of(*overrides)
    validate_recap(config)
    run = rounds.start_run(config, tmp_path / "run", World(), caught)
    demonstrations = rounds.obtain_demonstrations(run)
    assert dict(demonstrations.figures) == {"episodes": 3, "longest": 6, "mean_length": 5.0}
    assert budget(run).images_gb == pytest.approx((15 + 8 * 30) * 3 * SIDE * SIDE / 1e9)
    inputs = {"demonstrations": demonstrations}
    (source,) = open_sources(inputs, run.reading, run.workshop)
    (again,) = open_sources(inputs, run.reading, run.workshop, mode="on")
    assert again.frames is source.frames
    assert source.frames.images[CAMERA].kept.num_kept == 7, "as many as the budget has room for"
    features = FeatureConfig(image_keys=(CAMERA,), state_dim=4, action_dim=3)
    mixture = Mixture([source], features, 2)
    for _ in range(2):
        batch, seen = mixture.batch(np.arange(15)), reader_oracle.read(root, made.mapping())
        assert batch["task"] == [x.instruction for x in seen]
        assert batch["task"][1:4] == ["do thing 0", "do thing 1", "do thing 0"]
        for i, frame in enumerate(seen):
            assert np.array_equal(batch[CAMERA][i], frame.images[CAMERA])
    run.workshop.open_sets([])
    assert run.workshop.cache.reserve([(SIDE, SIDE)], 15, np.arange(15))[0].num_kept == 7, "given back"


def test_the_records_of_the_stages_have_every_setting_that_changes_a_result(whole):
    """A run of version 0.1.0 goes on, so the names stay; a forgotten one would reuse what is stale."""
    seen = {name: {key.split(".")[0] for key in record["settings"]} for name, record in whole[1].items()}
    fit_keys, common = {"training", "freeze", "seed"}, {"reading"}
    assert seen == {
        "demonstrations": {"plan", "episodes"},
        "sft": {"policy_path", "checkpoint", "norm_stats", "policy", "chunk_size", "sft", "advantage", "seed"}
        | common,
        **dict.fromkeys(
            ["value", "round-1/value", "round-2/value"],
            {"value", "training", "reward", "deadlines", "seed", "round"} | common,
        ),
        **{name: {"rollouts", "task", "round", "seed"} for name in seen if name.endswith("/rollouts")},
        **{f"round-{n}/advantages": {"reward", "advantage", "mode", "deadlines"} | common for n in (1, 2)},
        **{
            f"round-{n}/policy": fit_keys | common | {"mode", "round", "objective", "uncond_weight"}
            for n in (1, 2)
        },
        **{
            name: fit_keys | common | {"sft_advantage", "is_of_successes"}
            for name in seen
            if name.startswith("baseline") and name.endswith("policy")
        },
        **{
            name: {"eval", "task", "pool_size", "states", "guidance"}
            for name in seen
            if name.endswith(("evaluation", "validation", "validation-guidance-1"))
        },
    }
    assert "num_workers" not in whole[1]["round-1/rollouts"]["settings"]["task"]


def config_of(*overrides: str) -> RecapConfig:
    return load_config_from_yaml(DEMO, [*SHRUNK, *overrides], schema=RecapConfig)


def test_the_budget_counts_what_the_run_does(tmp_path, monkeypatch, capsys):
    config = config_of(f"output_dir={tmp_path}")
    run = rounds.start_run(config, tmp_path, World(), fit)
    needs = budget(run)
    assert (needs.recorded, needs.judged, needs.steps) == (2 + 3 * 4, 2 * 7 + 2 * 5, 30)
    assert (needs.policy_updates, needs.value_updates) == (6 + 4 * 8, 3 + 6)
    assert needs.images_gb == pytest.approx(10 * 30 * 3 * 32 * 32 / 1e9)
    assert needs.disk_gb == pytest.approx(14 * 30 * 3 * 32 * 32 / 1e9)
    print_budget(run)
    run.close()
    assert "minutes, at the speed" in capsys.readouterr().out
    monkeypatch.setattr("pi0.ript.recap.budget.shutil.disk_usage", lambda _: type("", (), {"free": 1}))
    with pytest.raises(BudgetError, match=r"rollouts\.num_states"):
        print_budget(run)


def test_assets_that_are_missing_are_named_before_anything_long(tmp_path, monkeypatch):
    monkeypatch.setenv("LIBERO_ASSETS", str(tmp_path))
    config = config_of("task.benchmark_name=libero_10", "task.task_names=[0]", f"output_dir={tmp_path}")
    with pytest.raises(MissingAssetsError, match="does not hold LIBERO's assets"):
        rounds.start_run(config, tmp_path, World(), fit)
    assert MissingAssetsError.explains_itself, "no traceback is shown"


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_the_configurations_of_the_repository_are_valid(file, tmp_path):
    config = load_config_from_yaml(file, schema=RecapConfig)
    if config.device == "cuda":  # what needs a GPU, a checkpoint and data is checked without them
        (tmp_path / "meta").mkdir()
        (tmp_path / "meta/info.json").write_text("{}")
        overrides = ["device=cpu", "policy_path=someone/pi0", f"demonstrations.root={tmp_path}"]
        config = load_config_from_yaml(file, overrides, schema=RecapConfig)
    validate_recap(config)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rounds=0", "rounds: expected at least 1, found 0"),
        ("value.form=big", "value.form: expected one of expert, separate, found 'big'"),
        ("advantage.positive_fraction=1.5", "expected a share between 0 and 1, found 1.5"),
        ("sft.learning_rate=0", "sft.learning_rate: expected a number above 0, found 0"),
        ("value.pretraining.learning_rate=-1", "value.pretraining.learning_rate: expected a number above 0"),
        ("finetuning.training.grad_norm_clip=.nan", "grad_norm_clip: expected a number, found .nan"),
        ("finetuning.training.decay_fraction=1.5", "decay_fraction: expected a share from 0 to 1, found 1.5"),
        ("finetuning.training.indicator_dropout=2", "indicator_dropout: expected a share from 0 to 1"),
        ("value.finetuning.validation_fraction=0", "validation_fraction: expected a share between 0 and 1"),
        ("rollouts.pool_size=3", "2 rounds of 2 states need 4 different ones, there are 3"),
        (
            "demonstrations.root=/nowhere",
            "no LeRobotDataset: expected meta/info.json in /nowhere",
        ),
        ("demonstrations.operator=hesitant", "demonstrations: "),
        ("task.benchmark_name=libero_10 task.task_names=[8]", "nobody can demonstrate"),
        ("skip_sft=true", "a toy policy is made by SFT"),
        (
            "filtered_rounds=3",
            "filtered_rounds: expected at most the 2 rounds that it is compared with, found 3",
        ),
        ("validation.guidances=[1,-2]", "validation.guidances: expected numbers of 0 or more, found [-2.0]"),
        (
            "validation.rollouts_per_task=0",
            "validation.guidances: are chosen by validation.rollouts_per_task",
        ),
        ("policy_path=nowhere/at/all", "policy_path: nothing at 'nowhere/at/all'"),
        ("device=tpu", "device: expected cpu, cuda"),
        ("policy.dtype=bfloat16", "policy.dtype: belongs to checkpoints"),
        ("policy.n_action_steps=3", "policy.n_action_steps: belongs to checkpoints"),
        ("policy.n_action_steps=0", "policy.n_action_steps: expected at least 1, found 0"),
        ("task.max_episode_length=0", "task.max_episode_length: expected at least 1, found 0"),
        ("task.render_quality=best", "task.render_quality: expected one of stock, fast"),
        ("distributed.backend=mpi", "distributed.backend: expected one of auto, gloo, nccl"),
        ("demonstrations.assume_success=true", "assume_success: what is recorded here needs none"),
        ("demonstrations.root=/nowhere", "demonstrations.episodes: nothing is recorded"),
        ("demonstrations.root=/nowhere", "demonstrations.quality.hesitation: nothing is recorded"),
    ],
)
def test_wrong_settings_are_refused_before_any_work(override, said):
    with pytest.raises(ConfigError) as error:
        validate_recap(config_of(*override.split()))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("reward.C_neg=5", "C_neg: expected at most 0, found 5"),
        ("finetuning.trainings.steps=3", "unknown key 'finetuning.trainings.steps'"),
        ("algo.lr=1", "unknown key 'algo.lr'"),
        ("demonstrations.quality.speed=1", "unknown key 'demonstrations.quality.speed'"),
    ],
)
def test_wrong_values_and_keys_are_refused_when_they_are_read(override, said):
    with pytest.raises(ConfigError) as error:
        config_of(override)
    assert said in str(error.value)


def test_the_file_says_which_algorithm_it_is_for(capsys):
    found = parse_config([f"--config_path={DEMO}"], algorithms={"recap": RECAP})
    assert isinstance(found, RecapConfig)
    assert asdict(found)["reward"]["C_neg"] == -50
    parse_config([f"--config_path={DEMO}", "--resume"], resumes=True, algorithms={"recap": RECAP})
    with pytest.raises(SystemExit):
        parse_config([f"--config_path={ROOT / 'configs/sft_pi0_config.json'}"], algorithms={"recap": RECAP})
    assert "is a configuration of supervised training; use pi0-train" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse_config(["--help"], algorithms={"recap": RECAP})
    said = capsys.readouterr().out
    assert "--config_path configs/demo.yaml" in said
    for key, value in (("sft.steps", 500), ("value.pretraining.steps", 200), ("sft.decay_fraction", 0.7)):
        assert re.search(rf"^  {key}={value}\b", said, re.MULTILINE), "of the whole, not of the part"
    with pytest.raises(SystemExit):
        parse_config([f"--config_path={DEMO}"])
    assert "pi0-recap runs it" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_share_the_work_and_go_on_after_a_stop(outcome, tmp_path):
    """Under torchrun, stopped once by SIGTERM: every stage, and the figures of one process to rounding."""
    port = str(20000 + os.getpid() % 9999)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port", port),
        *(str(recap_runs.SCRIPT), f"--config_path={DEMO}", f"output_dir={tmp_path}", *SHRUNK),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, cwd=ROOT, env=environment)
    while not (tmp_path / "demo/sft").exists():
        assert first.poll() is None, "it ended before it could be stopped"
        time.sleep(0.2)
    first.send_signal(signal.SIGTERM)
    assert first.wait() != 0
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    stages = json.loads((tmp_path / "demo/recap_state.json").read_text())["stages"]
    alone = outcome["whole"]
    assert list(stages) == STAGES
    assert hashes(stages)["demonstrations"] == hashes(alone)["demonstrations"]
    assert stages["sft"]["figures"]["loss"] == pytest.approx(alone["sft"]["figures"]["loss"], rel=1e-4)
    ours, theirs = (s["value"]["figures"]["calibration"] for s in (stages, alone))
    assert ours["error"] == pytest.approx(theirs["error"], rel=1e-3)
    assert stages["round-1/rollouts"]["figures"]["episodes"] == 4

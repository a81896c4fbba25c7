"""The whole of RECAP on a shrunk demo: interrupted after every stage and inside them, it comes to one end."""

import json
import runpy
import signal
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from pi0 import PI0Policy
from pi0.ript.config import ConfigError, load_config_from_yaml, parse_config
from pi0.ript.episodes import load_episodes
from pi0.ript.interruption import StoppedError
from pi0.ript.recap import RECAP, Recap, RecapConfig, training_steps
from pi0.ript.recap.advantages import read_advantages, read_lineage
from pi0.ript.recap.budget import BudgetError, budget, print_budget
from pi0.ript.recap.gates import GateError
from pi0.ript.recap.stages import STATE, Stages, StaleStageError, hash_files
from pi0.ript.recap.validation import validate_recap

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "train_ript_pi0_final.py"
DEMO = ROOT / "configs/demo.yaml"
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
SHRUNK = [
    *("task.max_episode_length=30", "task.num_workers=0", "task.num_parallel_envs=4", "task.image_size=32"),
    *("demonstrations.episodes=2", "demonstrations.num_workers=0", "demonstrations.quality.hesitation=0"),
    *("sft.steps=6", "sft.batch_size=8", "value.pretraining.steps=3", "value.finetuning.steps=3"),
    *("value.pretraining.batch_size=8", "value.finetuning.batch_size=8", "value.width=16"),
    *("rollouts.num_states=2", "rollouts.per_state=2", "rollouts.pool_size=6"),
    *("finetuning.training.steps=4", "finetuning.training.batch_size=8"),
    *("gates.min_correlation=-1", "gates.min_separation=0", "gates.max_fraction_error=1"),
    *("eval.rollouts_per_task=2", "eval.n_video=1", "baselines=true"),
]
STAGES = [
    *("demonstrations", "sft", "value", "sft-evaluation"),
    *(f"round-{n}/{s}" for n in (1, 2) for s in ("rollouts", "value", "advantages", "policy", "evaluation")),
    *("baseline-more-sft/policy", "baseline-successes/policy"),
    *("baseline-more-sft/evaluation", "baseline-successes/evaluation"),
]


def run(directory: Path, *overrides: str) -> dict:
    """Run the script in this process and return its stages."""
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    with pytest.MonkeyPatch.context() as patch:
        arguments = [f"--config_path={DEMO}", f"output_dir={directory}", *SHRUNK, *overrides]
        patch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return state(directory)


def state(directory: Path) -> dict:
    return json.loads((directory / "demo" / STATE).read_text())["stages"]


def hashes(stages: dict) -> dict[str, str]:
    return {name: record["output"]["hash"] for name, record in stages.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    return directory, run(directory)


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
    assert hash_files(run_dir / "policy") == stages["round-2/policy"]["output"]["hash"]
    results = json.loads((run_dir / "results.json").read_text())["policies"]
    assert list(results) == ["SFT", "round 1", "round 2", "more SFT", "SFT on successes"]
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[1]["rollout/success"] == stages["round-2/rollouts"]["figures"]["success"]


def test_rollouts_are_a_data_set_with_lineage_and_labels(whole):
    directory, stages = whole
    root = directory / "demo"
    episodes = load_episodes(root / "round-2/rollouts/dataset")
    assert len(episodes) == 4
    assert len({(one.initial_state_hash, one.seed) for one in episodes.labels}) == 4
    assert len({one.initial_state_hash for one in episodes.labels}) == 2
    first = load_episodes(root / "round-1/rollouts/dataset")
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


def test_what_is_finished_is_skipped(whole, capsys):
    directory, stages = whole
    again = run(directory)
    assert again == stages
    assert capsys.readouterr().out.count("up to date, skipped") == len(STAGES)


def test_killed_after_every_stage_it_comes_to_the_same_end(whole, tmp_path, monkeypatch):
    """Alternately before the stage is recorded, when it is made again, and after."""
    finish, count = Stages._finish, 0

    def fatal(self, name, *args):
        nonlocal count
        count += 1
        if count % 4 == 1:
            raise KeyboardInterrupt
        made = finish(self, name, *args)
        if count % 2:
            raise KeyboardInterrupt
        return made

    monkeypatch.setattr(Stages, "_finish", fatal)
    deaths = 0
    while True:
        try:
            found = run(tmp_path)
            break
        except KeyboardInterrupt:
            deaths += 1
    assert deaths >= len(STAGES) // 2
    assert hashes(found) == hashes(whole[1])


def test_stopped_inside_training_and_recording_it_comes_to_the_same_end(whole, tmp_path, monkeypatch):
    """Every second optimizer step and every second finished episode."""
    from pi0.ript.recap import recording

    calls, stops = 0, 0

    def stop_requested() -> int:
        nonlocal calls
        calls += 1
        return 143 if calls % 2 == 0 else 0

    monkeypatch.setattr(training_steps, "stop_requested", stop_requested)
    monkeypatch.setattr(recording, "stop_requested", stop_requested)
    while True:
        try:
            found = run(tmp_path)
            break
        except StoppedError:
            stops += 1
    assert stops > 20
    assert hashes(found) == hashes(whole[1])


def test_a_changed_configuration_is_refused_or_redone(whole, tmp_path):
    import shutil

    shutil.copytree(whole[0], tmp_path / "copy")
    place = tmp_path / "copy"
    with pytest.raises(StaleStageError, match=r"training.steps: made with 4, now 5"):
        run(place, "finetuning.training.steps=5", "rounds=1", "baselines=false")
    redone = run(place, "finetuning.training.steps=5", "rounds=1", "baselines=false", "on_stale=redo")
    before = hashes(whole[1])
    changed = {name for name, value in hashes(redone).items() if value != before[name]}
    assert changed == {"round-1/policy", "round-1/evaluation"}
    assert PI0Policy.from_pretrained(place / "demo/round-1/policy.1")
    labels = place / "demo/sft/config.json"
    labels.write_text(labels.read_text() + "\n")
    with pytest.raises(StaleStageError, match="its files have been changed"):
        run(place, "finetuning.training.steps=5", "rounds=1", "baselines=false")


def test_a_gate_stops_the_run_before_the_policy_is_trained(whole, tmp_path):
    import shutil

    shutil.copytree(whole[0], tmp_path / "copy")
    with pytest.raises(GateError, match="value correlation"):
        run(tmp_path / "copy", "gates.min_correlation=1.1")


def config_of(*overrides: str) -> RecapConfig:
    return load_config_from_yaml(DEMO, [*SHRUNK, *overrides], schema=RecapConfig)


def test_the_budget_counts_what_the_run_does(tmp_path, monkeypatch, capsys):
    config = config_of(f"output_dir={tmp_path}")
    recap = Recap(config, tmp_path)
    found = budget(recap)
    assert (found.recorded, found.judged, found.steps) == (2 + 2 * 4, 2 * 5, 30)
    assert (found.policy_updates, found.value_updates) == (6 + 3 * 8, 3 + 6)
    assert found.disk_gb == pytest.approx(10 * 30 * 3 * 32 * 32 / 1e9)
    print_budget(recap)
    recap.close()
    assert "minutes on this machine" in capsys.readouterr().out
    monkeypatch.setattr("pi0.ript.recap.budget.shutil.disk_usage", lambda _: type("", (), {"free": 1}))
    with pytest.raises(BudgetError, match=r"rollouts\.num_states"):
        print_budget(recap)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_the_configurations_of_the_repository_are_valid(file, monkeypatch):
    config = load_config_from_yaml(file, schema=RecapConfig)
    if config.device == "cuda":  # what needs a GPU and a checkpoint is checked without them
        overrides = ["device=cpu", "policy_path=someone/pi0"]
        config = load_config_from_yaml(file, overrides, schema=RecapConfig)
    validate_recap(config)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rounds=0", "rounds: expected at least 1, found 0"),
        ("value.form=big", "value.form: expected one of expert, separate, found 'big'"),
        ("advantage.positive_fraction=1.5", "expected a share between 0 and 1, found 1.5"),
        ("rollouts.pool_size=3", "2 rounds of 2 states need 4 different ones, there are 3"),
        ("demonstrations.root=/nowhere", "no LeRobotDataset at '/nowhere'"),
        ("demonstrations.operator=hesitant", "demonstrations: "),
        ("task.task_names=[assembly-v3]", "nobody can demonstrate assembly-v3"),
        ("skip_sft=true", "a toy policy is made by SFT"),
        ("policy_path=nowhere/at/all", "policy_path: nothing at 'nowhere/at/all'"),
        ("device=tpu", "device: expected cpu, cuda"),
    ],
)
def test_wrong_settings_are_refused_before_any_work(override, said):
    with pytest.raises(ConfigError) as error:
        validate_recap(config_of(override))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("reward.C_neg=5", "C_neg: expected at most 0, found 5"),
        ("finetuning.training.indicator_dropout=2", "indicator_dropout: expected a share, found 2.0"),
        ("value.finetuning.validation_fraction=0", "validation_fraction: expected a share between 0 and 1"),
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
        parse_config([f"--config_path={DEMO}"])
    assert "train_ript_pi0_final.py runs RECAP" in capsys.readouterr().err

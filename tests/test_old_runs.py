"""What a user of version 0.1.0 has goes on with this one, and what a later version wrote is refused.

The runs were made by tests/old_runs/make.py with the code of that version; expected.json says what it made of
each when it continued it. Only public commands are used here, and files that users see.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from old_runs import make

HERE = Path(__file__).parent / "old_runs"
ROOT = Path(__file__).parent.parent
EXPECTED = json.loads((HERE / "expected.json").read_text())
MODELS = [(run, model) for run, outcome in EXPECTED.items() for model in outcome["models"]]
RUNG_13, FINAL = "13_train_production_ready.py", "train_ript_pi0_final.py"
CONTINUED = {
    "value": ["pi0-train", "--config_path=runs/value/experiment_cfg/config.yaml"],
    "policy": ["pi0-train", "--config_path=runs/policy/experiment_cfg/config.yaml"],
    "ript": [RUNG_13, "--config_path=runs/ript/experiment_cfg/config.yaml", "--resume"],
    "recap": [
        *(FINAL, "--config_path=runs/recap/experiment_cfg/config.yaml"),
        *("finetuning.objective=indicator", "validation.rollouts_per_task=0"),  # as the old version did
    ],
}
REPLACED = {"value/separation"}
"""Figures that are not computed any more."""
LEFT = {"round-2/policy", "round-2/evaluation"}
"""Stages of the RECAP run that were not finished; the first was under way."""
EVALUATION = {
    "policy": {"type": "pi0", "pretrained_path": "runs/recap/round-1/policy"},
    "env": {"type": "line", "episode_length": 8},
    "eval": {"n_episodes": 4, "num_workers": 0, "max_episodes_rendered": 0, "guidance": 2.0},
    "plugins": ["plugin_example"],
    "device": "cpu",
    "output_dir": "evaluated",
}
AGAIN = ["pi0-train", "--config_path=runs/policy/experiment_cfg/config.yaml", "exp_name=again", "steps=1"]
LABEL = ["pi0-advantage", "--device=cpu", "--policy=start", "--value=runs/value", "relabelled"]
VIEW = ["pi0-dataset-viz", "runs/recap/round-1/rollouts/dataset", "--values=runs/recap/round-1/advantages"]
USED = {
    "evaluated": ["pi0-eval", "--config_path=evaluation.json"],
    "shown": ["pi0-dataset-viz", "data/labelled", "--output=labelled.html"],
    "shown with values": [*VIEW, "--output=rollouts.html"],
    "labelled": LABEL,
    "trained on labels": AGAIN,
}
LATER = {
    "runs/value": ("runs/value/checkpoint-3/checkpoint.json", CONTINUED["value"]),
    "runs/policy": ("runs/policy/checkpoint-3/checkpoint.json", CONTINUED["policy"]),
    "runs/ript": ("runs/ript/checkpoint-1-2/checkpoint.json", CONTINUED["ript"]),
    "runs/recap": ("runs/recap/recap_state.json", CONTINUED["recap"]),
    "labels": ("data/labelled/meta/advantages_lineage.json", AGAIN),
    "data set": ("data/demonstrations/meta/collection.json", ["pi0-dataset-viz", "data/demonstrations"]),
}
"""By name: the file that a later version wrote, and the command that meets it."""
CONFIGURATIONS = {
    "configs/demo.yaml": FINAL,
    "configs/demo_three_tasks.yaml": FINAL,
    "configs/recap_libero.yaml": FINAL,
    "configs/recap_libero_toy.yaml": FINAL,
    "configs/pi0_finetune_config.json": "pi0-train",
    "configs/sft_pi0_config.json": "pi0-train",
    "configs/value_finetune_config.json": "pi0-train",
    "configs/value_pretrain_config.json": "pi0-train",
    **{
        f"config/{name}.yaml": RUNG_13
        for name in (
            *("debug_train_pi0", "minimal_test", "train_pi0_cfg_rl", "libero_10", "libero_90"),
            *("libero_goal", "libero_object", "libero_spatial"),
        )
    },
}
"""By file: the command that reads it, which is stopped by a device that is not there."""


def unpack(place: Path) -> Path:
    with tarfile.open(HERE / "runs.tar.xz") as archive:
        archive.extractall(place, filter="data")
    (place / "evaluation.json").write_text(json.dumps(EVALUATION))
    return place


def of_a_later_version(file: Path) -> None:
    """Give a file the number of a format that is not known yet."""
    values = {**json.loads(file.read_text()), "format": 99}
    if "sha256" in values:  # of the rest
        del values["sha256"]
        values["sha256"] = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    file.write_text(json.dumps(values))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return unpack(tmp_path_factory.mktemp("old"))


@pytest.fixture(scope="module")
def outcomes(place, tmp_path_factory):
    """Run everything in one process, because importing takes longer than all these runs."""
    base = tmp_path_factory.mktemp("later")
    shutil.copytree(place / "data/labelled", place / "relabelled")
    (place / "relabelled/meta/advantages.json").unlink()
    (place / "relabelled/meta/advantages_lineage.json").unlink()
    commands = {name: [place, words] for name, words in (CONTINUED | USED).items()}
    for number, (name, (file, words)) in enumerate(LATER.items()):
        later = unpack(base / str(number))
        of_a_later_version(later / file)
        commands[f"later {name}"] = [later, words]
    commands["recap by the new recipe"] = [unpack(base / "recipe"), CONTINUED["recap"][:2]]
    for file, command in CONFIGURATIONS.items():
        commands[file] = [place, [command, f"--config_path=configurations/{file}", "device=cuda:99"]]
    (base / "commands.json").write_text(json.dumps(list(commands.values()), default=str))
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    subprocess.run(
        [sys.executable, str(HERE / "commands.py"), str(base / "commands.json"), str(base / "outcomes.json")],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        check=True,
    )
    return dict(zip(commands, json.loads((base / "outcomes.json").read_text()), strict=True))


@pytest.mark.parametrize("name", [*CONTINUED, *USED])
def test_a_command_takes_what_the_old_version_left(outcomes, name):
    assert (outcomes[name]["code"], outcomes[name]["message"]) == (0, None), outcomes[name]["output"]


@pytest.mark.parametrize(
    ("name", "checkpoint"),
    [("value", "checkpoint-3"), ("policy", "checkpoint-3"), ("ript", "checkpoint-1-2")],
)
def test_a_run_goes_on_from_its_checkpoint(outcomes, name, checkpoint):
    assert f"resume: continuing from runs/{name}/{checkpoint}\n" in outcomes[name]["output"]


def test_the_finished_stages_of_recap_are_used(place, outcomes):
    stages = json.loads((place / "runs/recap/recap_state.json").read_text())["stages"]
    skipped = {name for name in stages if f"{name}: up to date, skipped" in outcomes["recap"]["output"]}
    assert set(stages) - skipped == LEFT
    assert len(skipped) == 12
    assert "checkpoint.pt: version 0.1.0 stopped inside this stage" in outcomes["recap"]["output"]


def test_a_run_of_recap_by_the_former_recipe_is_not_gone_on_with_by_the_new_one_unasked(outcomes):
    outcome = outcomes["recap by the new recipe"]
    assert outcome["code"] not in (0, None)
    assert "objective: made with 'indicator', now 'ript'" in f"{outcome['message']}{outcome['output']}"


@pytest.mark.parametrize("name", CONTINUED)
def test_a_continued_run_has_the_figures_that_the_old_version_gave_it(place, outcomes, name):
    rows = make.outcome(place / "runs" / name)["rows"]
    expected = EXPECTED[name]["rows"]
    assert len(rows) == len(expected)
    for row, before in zip(rows, expected, strict=True):
        before = {key: value for key, value in before.items() if key not in REPLACED}
        assert {key for key, value in before.items() if value is None} == {
            k for k in before if row[k] is None
        }
        numbers = {key: value for key, value in before.items() if value is not None}
        assert {key: row[key] for key in numbers} == pytest.approx(numbers, rel=1e-3)


@pytest.mark.parametrize(("name", "model"), MODELS)
def test_a_continued_run_comes_to_the_weights_that_the_old_version_came_to(place, outcomes, name, model):
    size, squares = make.outcome(place / "runs" / name)["models"][model]
    assert size == EXPECTED[name]["models"][model][0]
    assert squares == pytest.approx(EXPECTED[name]["models"][model][1], rel=1e-6)


def test_an_old_policy_acts_as_it_did(place, outcomes):
    assert outcomes["evaluated"]["code"] == 0
    now = json.loads((place / "evaluated/evaluation.json").read_text())
    before = json.loads((place / "runs/recap/round-1/evaluation/evaluation.json").read_text())
    assert now["episodes"] == before["episodes"]


def test_an_old_value_function_gives_the_same_labels(place, outcomes):
    assert outcomes["labelled"]["code"] == 0
    sides = [
        json.loads((place / p / "meta/advantages.json").read_text()) for p in ("relabelled", "data/labelled")
    ]
    now, before = ({key: float(value) for key, value in side.items()} for side in sides)
    assert now == pytest.approx(before, abs=1e-4)


def test_old_labels_are_shown_and_trained_on(place, outcomes):
    assert (
        "indicator of the advantage: positive in 28.9% of the frames"
        in outcomes["trained on labels"]["output"]
    )
    for page in ("labelled.html", "rollouts.html"):
        assert "advantage" in (place / page).read_text()


@pytest.mark.parametrize("name", LATER)
def test_what_a_later_version_wrote_is_refused_in_one_line(outcomes, name):
    outcome = outcomes[f"later {name}"]
    assert outcome["code"] in (1, 2)
    message = outcome["message"] or outcome["output"]
    (line,) = [line for line in message.strip().splitlines() if "format" in line]
    for part in (LATER[name][0], "format 99", "later version of pi0-ript", "install"):
        assert part in line


@pytest.mark.parametrize("file", CONFIGURATIONS)
def test_an_old_configuration_is_read_as_a_whole(outcomes, file):
    outcome = outcomes[file]
    said = f"{outcome['output']}\n{outcome['message']}"
    assert outcome["code"] in (1, 2)
    # It was read, and checked: a device is looked for once nothing else is wrong.
    told = ("'cuda:99' is not there", "no LeRobotDataset", "nothing at")
    assert any(words in said for words in told), said
    for wrong in ("unknown", "did you mean", "Traceback"):
        assert wrong not in said


def test_the_runs_stay_small():
    assert (HERE / "runs.tar.xz").stat().st_size < 3_000_000

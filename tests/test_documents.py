"""The requirement documents, as written: their commands run, and docs/requirements.md says what shows it.

The scripts in tests/documents have each document's commands word for word below a line, and above it what
stands for its names. All of it: make test-documents.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pi0 import PI0Policy
from pi0.value import ValueFunction

ROOT = Path(__file__).parent.parent
SCRIPTS = {path.stem.removeprefix("requirement_"): path for path in (ROOT / "tests/documents").glob("*.sh")}
TABLE = ROOT / "docs/requirements.md"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
LINE = f"\n# {'-' * 108}\n"


def follow(number: str, directory: Path, **environment: str) -> str:
    """Run a document's script in a directory and return what it printed."""
    done = subprocess.run(
        ["bash", str(SCRIPTS[number])],
        cwd=directory,
        env={**ENVIRONMENT, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


# In CI ------------------------------------------------------------------------------------------------------


def test_what_the_table_names_is_there():
    """Every row has a command and at least one test, or says what is missing."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in TABLE.read_text().splitlines()
        if re.match(r"\| \d{3}", line)
    ]
    assert {row[0] for row in rows} == {"000", "001", "002", "003", "004"}
    for number, requirement, command, shown in rows:
        named = re.findall(r"`(test_\w+)\.(test_\w+)`", shown)
        assert named or shown.startswith("not yet"), (number, requirement)
        assert command or shown.startswith("not yet"), (number, requirement)
        if named:
            _require_tests(shown, requirement)


def test_every_shortfall_has_a_test_that_is_there():
    """B1 to B14, the second table."""
    rows = re.findall(r"^\| (B\d+) \| .+? \| (.+) \|$", TABLE.read_text(), re.MULTILINE)
    assert [number for number, _ in rows] == [f"B{i}" for i in range(1, 15)]
    for number, shown in rows:
        _require_tests(shown, number)


def _require_tests(shown: str, row: str) -> None:
    named = re.findall(r"`(test_\w+)\.(test_\w+)`", shown)
    assert named, row
    for file, function in named:
        source = (ROOT / "tests" / f"{file}.py").read_text()
        assert f"def {function}(" in source, f"{TABLE.name}, {row}: {file}.{function}"


@pytest.mark.parametrize("number", sorted(SCRIPTS))
def test_scripts_list_what_stands_for_the_documents_names(number):
    head, line, body = SCRIPTS[number].read_text().partition(LINE)
    assert line
    assert "Substitutions" in head
    assert len(body.splitlines()) > 3
    assert subprocess.run(["bash", "-n", str(SCRIPTS[number])], check=False).returncode == 0


@pytest.mark.parametrize("number", sorted(SCRIPTS))
def test_commands_are_those_of_the_document(number):
    """Where the documents are at hand, beside the checkout."""
    documents = list((ROOT.parent / "shared/requirements").glob(f"{number}_*.txt"))
    if not documents:
        pytest.skip("needs the requirement documents in ../shared/requirements")
    said = re.sub(r"<(\w+)>", r"$\1", documents[0].read_text())
    templates = (
        "script_name",
        "timeout 300",
        "echo ",
        "done",
        "# ",
        "export ",
        "| tee",
        "SFT_CHECKPOINT=$SFT",
    )
    lines = SCRIPTS[number].read_text().partition(LINE)[2].splitlines()
    unknown = [x for x in lines if x.strip() and x.strip() not in said and not any(t in x for t in templates)]
    assert unknown == []


@pytest.mark.sim
def test_requirement_002s_command_runs_word_for_word(tmp_path):
    """GR00T's flags, with W&B, augmentation and reading processes, and its layout of a run."""
    said = follow("002", tmp_path)
    assert "✓ WandB初始化成功" in said
    (run,) = (tmp_path / "output").iterdir()
    settings = run / "experiment_cfg/config.yaml"
    for name in ("experiment_cfg/conf.yaml", "processor/statistics.json", "wandb_config.json"):
        assert (run / name).exists(), name
    assert "enable: true" in settings.read_text(), "the colour jitter"
    assert (run / "checkpoint-2/processor").is_dir()
    PI0Policy.from_pretrained(run)


# All of it --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.sim
def test_requirement_000s_three_ways_are_one(tmp_path):
    follow("002", tmp_path)
    follow("000", tmp_path)
    weights = [load_file(tmp_path / f"outputs/train/way-{n}/model.safetensors") for n in (1, 2, 3)]
    for other in weights[1:]:
        assert all(weights[0][name].equal(value) for name, value in other.items())


@pytest.mark.slow
@pytest.mark.sim
def test_requirement_001s_acceptance_commands_run(tmp_path):
    said = follow("001", tmp_path, OUTPUT=str(tmp_path))
    for line in (
        *("✓ 配置文件加载成功", "✓ 配置验证通过", "✓ 训练正常启动", "✓ WandB初始化成功", "✓ 日志文件创建"),
        *("✓ LiberoInitStateDataset创建成功", "✓ DataLoader创建成功"),
    ):
        assert line in said
    debug = tmp_path / "debug_train_pi0/debug"
    assert {file.suffix for file in debug.iterdir()} == {".png", ".json", ".mp4"}


@pytest.mark.slow
@pytest.mark.sim
def test_requirement_004s_flow_runs_word_for_word(tmp_path):
    said = follow("004", tmp_path)
    runs = sorted((tmp_path / "outputs/train").iterdir())
    assert [run.name.rpartition("_")[2] for run in runs] == ["pi0", "value", "value", "pi0"]
    for run in runs:
        load = PI0Policy if run.name.endswith("pi0") else ValueFunction
        load.from_pretrained(run / "checkpoints/4")
    settings = [(run / "experiment_cfg/config.yaml").read_text() for run in runs]
    started = [re.findall(r"policy_path: (.*)", text)[0] for text in settings]
    places = [f"outputs/train/{run.name}/checkpoints/4" for run in runs]
    assert started == ["toy", "toy", places[1], places[0]]
    assert said.endswith(f"SFT_CHECKPOINT={places[3]}\n"), "where the next iteration begins"
    assert "evaluation: 300/300" in said
    assert "training states" in said

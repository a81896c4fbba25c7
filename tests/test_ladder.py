"""The four rules of the ladder: closure, small additive steps, equal trajectories at rest, true headers."""

import ast
import json
import os
import runpy
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import ladder
import pytest

from pi0.ript import environments
from pi0.ript.config import load_config_from_yaml

ROOT = ladder.ROOT
MINIMAL = ROOT / "pi0/ript/config/minimal_test.yaml"
REFERENCE = ROOT / "pi0/ript/scripts/train_ript_pi0.py"
SMALLER = [  # than the minimal configuration, which all rungs run here, one after the other
    *("algo.rloo_batch_size=2", "algo.data_batch_size=2", "algo.max_sampling_attempts=5"),
    "algo.num_epochs=1",
    *("eval.rollouts_per_task=3", "eval.n_video=1"),
]
RUNG_OF = {module: rung.name for rung in ladder.RUNGS.values() for module in rung.introduces}


@pytest.fixture(params=ladder.STEPS, ids=lambda step: f"{step[0].name} to {step[1].name}")
def step(request):
    return request.param


# 1: closure -------------------------------------------------------------------------------------------------


def test_a_rung_imports_the_core_and_the_modules_introduced_so_far_and_nothing_else(step):
    parent, child = step
    new = ladder.closure(child.path) - ladder.closure(parent.path)
    lost = ladder.closure(parent.path) - ladder.closure(child.path)
    assert not lost, "a rung keeps what the one before it has"
    assert {m for m in new if not any(m == i or m.startswith(f"{i}.") for i in child.introduces)} == set()
    assert set(child.introduces) <= new, "what a rung introduces is new and used"


def test_modules_of_rungs_are_leaves():
    for module, rung in RUNG_OF.items():
        for path in ladder.module_files(module):
            owners = {
                owner
                for name in ladder.imported_modules(path)
                for part, owner in RUNG_OF.items()
                if name == part or name.startswith(f"{part}.")
            }
            assert owners <= {rung}, f"{path} imports a module of rung {owners - {rung}}"


def test_the_library_does_not_know_the_rungs():
    """The core stays usable without what the later rungs add."""
    assert not {m for m in ladder.closure(ladder.RUNGS["8"].path) if m in RUNG_OF}


# 2: small and additive --------------------------------------------------------------------------------------


def moved_out(rung) -> set[str]:
    """The lines of rung 8's settings, which rung 9 moves out of the script."""
    lines = rung.source.splitlines()
    nodes = [n for n in ast.parse(rung.source).body if isinstance(n, ast.ClassDef | ast.FunctionDef)]
    nodes = [n for n in nodes if n.name != "main"]
    starts = [min([n.lineno, *(d.lineno for d in n.decorator_list)]) - 1 for n in nodes]
    return {line for start, n in zip(starts, nodes, strict=True) for line in lines[start : n.end_lineno]}


def test_a_step_is_small(step):
    parent, child = step
    added, removed = ladder.changed_lines(parent, child)
    if child.name == "9":
        removed = [line for line in removed if line not in moved_out(parent)]
    assert len(added) <= 40
    assert len(removed) <= 20


def test_nothing_is_merely_indented(step):
    added, removed = ladder.changed_lines(*step)
    assert not {line.strip() for line in removed if len(line.strip()) > 3} & {line.strip() for line in added}


def test_scripts_fit_a_few_screens():
    for rung in ladder.RUNGS.values():
        limit = 170 if rung.name == "8" else 150  # the first holds its settings too
        assert len(rung.source.splitlines()) <= limit, rung.path.name


# 3: at rest nothing changes ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What every rung prints and writes on the minimal configuration, each run in this process."""
    directory = tmp_path_factory.mktemp("ladder")
    config = load_config_from_yaml(MINIMAL, SMALLER)
    settings = config.task
    small = replace(
        environments.ENVIRONMENTS["metaworld"],
        max_steps=settings.max_episode_length,
        num_slots=settings.num_parallel_envs,
        warm_start={k: v for k, v in vars(settings.warm_start).items() if v is not None},
    )
    found = {}
    handlers = {
        number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setitem(environments.ENVIRONMENTS, "metaworld", small)
        for rung in ladder.RUNGS.values():
            arguments = rung.header("Run").split(rung.path.name)[1].split()
            if rung.name == "8":  # its command takes minutes; the same settings as flags do not
                arguments = [*as_flags(config), "--task.num_workers", "0"]
            else:
                arguments += ["task.num_workers=0", *SMALLER]
            paths = [
                f"--output_dir={directory}",
                f"--exp_name={rung.name}",
                f"--warm_start_dir={directory}/cache",
            ]
            patch.setattr(sys, "argv", [str(rung.path), *arguments, *paths])
            runpy.run_path(str(rung.path), run_name="__main__")
            found[rung.name] = read(directory / rung.name)
        paths[1] = "--exp_name=reference"
        patch.setattr(
            sys, "argv", [str(REFERENCE), f"--config_path={MINIMAL}", "task.num_workers=0", *SMALLER, *paths]
        )
        runpy.run_path(str(REFERENCE), run_name="__main__")
        found["reference"] = read(directory / "reference")
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return found


def read(directory: Path) -> dict:
    return json.loads((directory / "results.json").read_text()) | {"directory": directory}


def as_flags(config) -> list[str]:
    """The settings that rung 8 has, as its flags."""
    first = runpy.run_path(str(ladder.RUNGS["8"].path))["AdvancedTrainingConfig"]()
    flags = []
    for section in ("algo", "dataset", "training", "eval"):
        for key in vars(getattr(first, section)):
            flags += [f"--{section}.{key}", str(getattr(getattr(config, section), key))]
    return flags


def trajectory(results: dict) -> list[dict]:
    rows = results["metrics"]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def test_at_rest_a_step_changes_no_number(runs, step):
    parent, child = (runs[rung.name] for rung in step)
    assert len(parent["metrics"]) >= 2
    for ours, theirs in zip(trajectory(child), trajectory(parent), strict=True):
        assert {k: ours[k] for k in theirs} == theirs
    assert child["before"] == parent["before"]
    assert child["after"] == parent["after"]
    files = [run["directory"] / "policy/model.safetensors" for run in (parent, child)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_reference_trainer_gives_the_numbers_of_the_last_rung(runs):
    last, reference = runs[list(ladder.RUNGS)[-1]], runs["reference"]
    for ours, theirs in zip(trajectory(last), trajectory(reference), strict=True):
        assert {k: ours[k] for k in theirs} == theirs
    assert last["after"] == reference["after"]
    files = [run["directory"] / "policy/model.safetensors" for run in (last, reference)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_chain_learns_something(runs):
    """Otherwise equal trajectories would say nothing."""
    rows = [row for row in runs["8"]["metrics"] if row["train/windows"]]
    assert rows, "no group of mixed outcome in the minimal configuration"
    assert len({row["train/loss"] for row in rows}) == len(rows)


# 4: headers -------------------------------------------------------------------------------------------------


def test_headers_are_true():
    names = list(ladder.RUNGS)
    for rung in ladder.RUNGS.values():
        assert rung.path.name in rung.header("Run")
        assert rung.header("Introduces")
        if rung.name != "8":
            assert rung.header("Parent") == ladder.RUNGS[names[names.index(rung.name) - 1]].path.name


def test_stages_are_current():
    written = (ROOT / "docs" / "stages.md").read_text()
    assert written == ladder.stages(), "run: python tools/ladder.py stages"


def test_every_note_speaks_of_a_line_that_is_there():
    """A note begins with the code that it explains, in backquotes."""
    for parent, child in ladder.STEPS:
        fragments = [
            line.split("`")[1] for line in ladder.notes()[child.name].splitlines() if line.startswith("* `")
        ]
        added, _ = ladder.changed_lines(parent, child)
        assert fragments
        for fragment in fragments:
            assert any(fragment in line for line in added), f"{child.name}: {fragment}"


# Two processes ----------------------------------------------------------------------------------------------


def test_two_processes_run_the_command_of_the_header(tmp_path, runs, monkeypatch):
    """With a learning rate of nothing, both iterations of two processes are those of one, number by number.

    Five attempts in each: after an odd number, too, the processes must draw the states that one would.
    """
    rung = ladder.RUNGS["10"]
    command = rung.header("Run").split()
    assert command[0] == "torchrun"
    port = str(20000 + os.getpid() % 9999)
    command[0:1] = [sys.executable, "-m", "torch.distributed.run", "--master_port", port]
    cache = runs["10"]["directory"].parent / "cache"
    settings = [
        *(f"output_dir={tmp_path}", f"warm_start_dir={cache}", "task.num_workers=0", *SMALLER),
        *("algo.lr=1e-12", "algo.data_batch_size=5", "algo.max_sampling_attempts=5"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*command, *settings, "exp_name=pair"], cwd=ROOT, check=True, env=environment)
    monkeypatch.chdir(ROOT)
    arguments = [f"--config_path={MINIMAL}", *settings, "exp_name=alone"]
    monkeypatch.setattr(sys, "argv", [str(rung.path), *arguments])
    runpy.run_path(str(rung.path), run_name="__main__")
    pair, alone = read(tmp_path / "pair"), read(tmp_path / "alone")
    assert (pair["before"], pair["after"]) == (alone["before"], alone["after"])
    for ours, theirs in zip(trajectory(pair), trajectory(alone), strict=True):
        assert ours.pop("train/loss") == pytest.approx(theirs.pop("train/loss"), rel=1e-4)
        assert ours == theirs
        assert ours["rollout/attempts"] == 5

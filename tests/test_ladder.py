"""The four rules of the ladder: closure, small additive steps, equal trajectories at rest, true headers."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import ladder
import ladder_runs
import pytest

ROOT = ladder.ROOT
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
    users = {name: {m for m in new if m == name or m.startswith(f"{name}.")} for name in child.introduces}
    assert new == set().union(*users.values())
    assert all(users.values()), "what a rung introduces is new and used"


def test_modules_of_rungs_are_leaves():
    """All but RECAP's, which stands on everything before it."""
    for module, rung in RUNG_OF.items():
        if rung == "final":
            continue
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


SMALL_STEPS = ladder.STEPS[:-1]  # the final script is another algorithm


@pytest.mark.parametrize(("parent", "child"), SMALL_STEPS, ids=lambda rung: rung.name)
def test_a_step_is_small(parent, child):
    added, removed = ladder.changed_lines(parent, child)
    if child.name == "9":
        removed = [line for line in removed if line not in moved_out(parent)]
    assert len(added) <= 40
    assert len(removed) <= 20


@pytest.mark.parametrize(("parent", "child"), SMALL_STEPS, ids=lambda rung: rung.name)
def test_nothing_is_merely_indented(parent, child):
    added, removed = ladder.changed_lines(parent, child)
    assert not {line.strip() for line in removed if len(line.strip()) > 3} & {line.strip() for line in added}


def test_scripts_fit_a_few_screens():
    for rung in ladder.RUNGS.values():
        limit = 170 if rung.name == "8" else 150  # its settings too
        assert len(rung.source.splitlines()) <= limit, rung.path.name


def test_the_installed_script_is_rung_13():
    """All but the header: `python tools/ladder.py carry` carries an edit there too."""
    scripts = [ladder.RUNGS["13"].source, ladder.INSTALLED.read_text()]
    bodies = [source[source.index('"""', 3) :] for source in scripts]
    assert bodies[0] == bodies[1]


# 3: at rest nothing changes ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory, warm_start_cache):
    """What every rung prints and writes on the minimal configuration."""
    directory = tmp_path_factory.mktemp("ladder")
    start(sys.executable, str(ROOT / "tests/ladder_runs.py"), str(directory), str(warm_start_cache))
    names = [*ladder_runs.commands(directory, warm_start_cache), "reference"]
    return {name: read(directory / name) for name in names}


def start(*command: str) -> None:
    """Run a program from the root of the repository; its output is shown when a test fails."""
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tools")]), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ | paths)


def read(directory: Path) -> dict:
    return json.loads((directory / "results.json").read_text()) | {"directory": directory}


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


def test_a_trainer_that_shares_neither_loop_nor_objective_gives_the_numbers_of_rung_13(runs):
    last, reference = runs["13"], runs["reference"]
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


@pytest.mark.parametrize("language", ladder.LANGUAGES)
def test_stages_are_current(language):
    written = (ROOT / f"docs/stages{language}.md").read_text()
    assert written == ladder.stages(language), "run: python tools/ladder.py stages"


def test_a_translation_has_every_header_and_module():
    sections = ladder.notes(".zh-CN")
    assert {name for name in sections if name.startswith("header-")} == {f"header-{n}" for n in ladder.RUNGS}
    introduced = {module for rung in ladder.RUNGS.values() for module in rung.introduces}
    assert ladder.named_lines(sections["modules"]).keys() == introduced
    assert set(ladder.notes()) == {n for n in sections if not n.startswith("header-")} - {"modules"}


def test_the_reading_path_names_files_of_their_rung_and_functions_that_are_there():
    path = ladder.reading_path()
    assert [entry for entry in path if not entry.is_there] == []
    names = ("groups", "rollout", "advantage", "windows", "loss", "starting_policy")
    assert [entry.path.stem for entry in path if entry.rung == "8"] == list(names)
    known: set[str] = set()
    for name, rung in ladder.RUNGS.items():
        new = ladder.closure(rung.path) - known
        known |= new
        files = {file for module in new for file in ladder.module_files(module)}
        entries = [entry.path for entry in path if entry.rung == name]
        assert entries, f"rung {name} has nothing to open first"
        assert set(entries) <= files, f"rung {name}"


def test_a_function_that_is_not_there_is_noticed():
    path = ladder.LIBRARY / "loss.py"
    entries = {name: ladder.Entry("8", path, name, "") for name in ("AdvantageLoss.forward", "make_learner")}
    assert all(entry.is_there for entry in entries.values())
    gone = ("AdvantageLoss.backward", "forward", "np")
    assert not any(ladder.Entry("8", path, name, "").is_there for name in gone)


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
    fragments = [line.split("`")[1::2] for line in ladder.notes()["8"].splitlines() if line.startswith("* `")]
    source = ladder.RUNGS["8"].source
    assert not [line[0] for line in fragments if line[0] not in source]


# Two processes ----------------------------------------------------------------------------------------------


def test_two_processes_run_the_command_of_the_header(tmp_path, runs, warm_start_cache):
    """With a learning rate of nothing, both iterations of two processes are those of one, number by number.

    Three attempts in each: after an odd number, too, the processes must draw the states that one would.
    """
    command = ladder.RUNGS["10"].header("Run").split()
    assert command[0] == "torchrun"
    port = str(20000 + os.getpid() % 9999)
    command[0:1] = [sys.executable, "-m", "torch.distributed.run", "--master_port", port]
    paths = [f"output_dir={tmp_path}", f"warm_start_dir={warm_start_cache}", "exp_name=pair"]
    start(*command, *ladder_runs.PAIR, *paths)
    pair, alone = read(tmp_path / "pair"), runs["alone"]
    assert (pair["before"], pair["after"]) == (alone["before"], alone["after"])
    assert any(row["train/windows"] for row in alone["metrics"])
    for ours, theirs in zip(trajectory(pair), trajectory(alone), strict=True):
        assert ours.pop("train/loss") == pytest.approx(theirs.pop("train/loss"), rel=1e-4)
        assert ours == theirs
        assert ours["rollout/attempts"] == 3

"""Launching: the command lines, exit codes, signals, and that nothing is left running."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from importlib import import_module
from pathlib import Path

import psutil
import pytest

from pi0.ript.commands import launch
from pi0.ript.commands.launch import COMMANDS, launch_arguments

ROOT = Path(__file__).parent.parent
SCRIPT = str(ROOT / "pi0/ript/commands/evaluate.py")
SIGNALS = "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"

TOY = """
import os, pathlib, signal, sys, time

what, *rest = sys.argv[1:]
rank = os.environ.get("RANK", "")
if what == "exit":
    sys.exit(int(rest[0]))
if what == "die":
    os.kill(os.getpid(), int(rest[0]))
if what == "write":
    pathlib.Path(rest[0]).write_text(repr(rest[1:]))
if what == "wait":  # answers a signal after a moment, as a run that saves does
    def stop(number, frame):
        time.sleep(0.5)
        with open(f"{rest[0]}.stopped{rank}", "a") as file:
            file.write(f"{number} ")
        sys.exit(128 + number)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, stop)
if what in ("wait", "sleep"):
    pathlib.Path(f"{rest[0]}.given{rank}").write_text(repr(rest[1:]))
    pathlib.Path(f"{rest[0]}.part{rank}").write_text(str(os.getpid()))
    pathlib.Path(f"{rest[0]}.part{rank}").rename(f"{rest[0]}.pid{rank}")
    time.sleep(120)
"""
START = """
import sys
from pi0.ript.commands import launch
launch.COMMANDS["toy"] = launch.Command("toy_script", is_parallel=True)
sys.exit(launch.run("toy"))
"""


@pytest.fixture
def start(tmp_path):
    """Start the launcher on a script that does what its arguments say; end what is left of it."""
    (tmp_path / "toy_script.py").write_text(TOY)
    paths = os.pathsep.join([str(ROOT), str(tmp_path)])
    started = []

    def run(*arguments: object) -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", START, *map(str, arguments)],
                env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield run
    for process in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
        process.kill()
        process.communicate()


def read_when_there(path: Path) -> str:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} was never written"
        time.sleep(0.02)
    return path.read_text()


def is_running(pid: str) -> bool:
    return psutil.pid_exists(int(pid)) and psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE


# Command lines ------------------------------------------------------------------------------------------


def test_command_lines(tmp_path):
    config = tmp_path / "accelerate.yaml"
    config.write_text("distributed_type: MULTI_GPU\nnum_processes: 8\n")
    rest = ["--steps=3", "--accel", "x", "-n", "algo.lr=1e-5", "--task", "a b", "--num", "-1"]
    python = sys.executable
    assert launch_arguments("eval", rest) == [python, SCRIPT, *rest]
    assert launch_arguments("eval", ["--nproc-per-node", "1", *rest]) == [python, SCRIPT, *rest]
    assert launch_arguments("eval", [*rest[:3], f"--accelerate-config={config}", *rest[3:]]) == [
        *(python, "-m", "accelerate.commands.launch", "--quiet", "--config_file", str(config)),
        SCRIPT,
        *rest,
    ]
    assert launch_arguments("eval", [*rest, "--nproc_per_node=2"]) == [
        *(python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", SIGNALS, SCRIPT),
        *rest,
    ]


def test_what_follows_two_dashes_is_the_scripts():
    after = ["--nproc-per-node=4", "--accelerate-config", "none.yaml", "--", "-h"]
    assert launch_arguments("eval", ["-a", "--", *after]) == [sys.executable, SCRIPT, "-a", *after]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--accelerate-config", "none.yaml"], "no file 'none.yaml'; make one with: accelerate config"),
        (["--nproc-per-node", "0"], "expected a number of processes, found '0'"),
        (["--nproc-per-node", "two"], "expected a number of processes, found 'two'"),
        (["--nproc-per-node", "2", "--accelerate-config", "x"], "not allowed with argument"),
    ],
)
def test_options_that_cannot_be_used(argv, message, capsys):
    try:
        code = launch.run("eval", argv)
    except SystemExit as error:  # argparse's own
        code = error.code
    assert code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["MULTI_CPU", "'NO'", "NO"])
def test_accelerate_files_of_which_one_process_would_start(kind, tmp_path, capsys):
    config = tmp_path / "accelerate.yaml"
    config.write_text(f"distributed_type: {kind}\nnum_processes: 2\n")
    assert launch.run("train", ["--accelerate-config", str(config)]) == 2
    assert "asks for 2 processes" in capsys.readouterr().err
    config.write_text(f"{config.read_text()}mpirun_config:\n  mpirun_ccl: '1'\n")
    assert launch_arguments("train", ["--accelerate-config", str(config)])[2] == "accelerate.commands.launch"
    config.write_text("- a list")
    assert launch.run("train", ["--accelerate-config", str(config)]) == 2


def test_one_process_commands_take_no_launcher(capsys):
    assert launch.run("doctor", ["--nproc-per-node=2"]) == 2
    assert capsys.readouterr().err == (
        "pi0-doctor: error: runs in one process; leave out --accelerate-config and --nproc-per-node\n"
    )


def test_a_script_that_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(COMMANDS, "toy", launch.Command("pi0.ript.no_such_script", is_parallel=False))
    assert launch.run("toy", []) == 2
    assert "its script, the module pi0.ript.no_such_script, is missing" in capsys.readouterr().err


def test_console_script_and_module_are_equal(monkeypatch, capsys):
    started = []
    monkeypatch.setattr(launch, "supervise", lambda arguments, _environment: started.append(arguments) or 7)
    monkeypatch.setattr(launch, "_code_of_check", lambda *_: None)
    argv = ["--nproc-per-node", "2", "--policy", "a directory"]
    monkeypatch.setattr(sys, "argv", ["pi0-eval", *argv])
    assert launch.eval() == 7
    monkeypatch.setattr(sys, "argv", ["launch.py", "eval", *argv])
    assert launch.main() == 7
    assert started[0] == started[1] == launch_arguments("eval", argv)
    assert capsys.readouterr().out.splitlines()[0].startswith(f"Executing: {sys.executable} -m torch.")


def test_unknown_commands_are_refused(capsys):
    assert launch.main(["evaluate"]) == launch.main([]) == 2
    assert "expected one of these commands, found 'evaluate'" in capsys.readouterr().err
    assert launch.main(["--help"]) == 0
    assert "train, recap, eval, doctor" in capsys.readouterr().out
    with pytest.raises(AttributeError, match="no attribute 'evaluate'"):
        _ = launch.evaluate


def test_every_command_of_the_document_is_launched():
    """Requirement 000: train, eval, export and dataset-viz, by one module."""
    for name in ("export", "dataset-viz", "advantage"):
        script = ROOT / f"pi0/ript/commands/{name.replace('-', '_')}.py"
        assert launch_arguments(name, ["somewhere"]) == [sys.executable, str(script), "somewhere"]
    assert "--nproc-per-node=2" in launch_arguments("train", ["--num-gpus", "2"]), "GR00T's name"


def test_help_shows_both_and_runs_alone(capsys):
    assert launch_arguments("eval", ["--nproc-per-node=2", "--help"]) == [sys.executable, SCRIPT, "--help"]
    assert "--accelerate-config FILE" in capsys.readouterr().out


def test_the_table_is_in_pyproject():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    launched = {name: target for name, target in scripts.items() if ".launch:" in target}
    assert {f"pi0-{name}" for name in COMMANDS} <= scripts.keys()
    assert all(target == f"{launch.__name__}:{name[4:]}" for name, target in launched.items())
    for target in launched.values():
        module, attribute = target.split(":")
        assert callable(getattr(import_module(module), attribute))


def test_the_example_is_a_configuration_of_the_command():
    words = launch.__doc__.splitlines()[2].split()
    assert words[0] == "pi0-train"
    file = ROOT / words[words.index("--config_path") + 1]
    assert "dataset_mixture" in json.loads(file.read_text())


# Processes ----------------------------------------------------------------------------------------------


def test_the_launcher_imports_nothing_heavy():
    code = (
        "import sys; from pi0.ript.commands import launch; launch.launch_arguments('eval', []); "
        "heavy = {'torch', 'numpy', 'accelerate', 'mujoco', 'pi0.ript.commands.evaluate'}; "
        "print(heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("exit", 0), 0), (("exit", 3), 3), (("die", signal.SIGKILL), 137), (("die", signal.SIGSEGV), 139)],
)
def test_the_exit_code_is_the_scripts(start, arguments, code):
    process = start(*arguments)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert output.startswith("Executing: ")


def test_the_script_gets_its_arguments_as_they_are(start, tmp_path):
    arguments = ["--steps=3", "a b", "--nproc", "{x: [1, 2]}", ""]
    process = start("write", tmp_path / "given", *arguments, "--", "--nproc-per-node=2")
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert (tmp_path / "given").read_text() == repr([*arguments, "--nproc-per-node=2"])


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)]
)
def test_a_signal_reaches_the_script_once_and_is_waited_for(start, tmp_path, number, code):
    process = start("wait", tmp_path / "toy")
    pid = read_when_there(tmp_path / "toy.pid")
    process.send_signal(number)
    process.send_signal(number)  # as `timeout` does
    process.communicate(timeout=60)
    assert process.returncode == code
    assert (tmp_path / "toy.stopped").read_text().split() == [str(int(number))]
    assert not is_running(pid)


def test_ctrl_c_ends_a_script_without_handlers(start, tmp_path):
    process = start("sleep", tmp_path / "toy")
    pid = read_when_there(tmp_path / "toy.pid")
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert not is_running(pid)


def test_accelerate_runs_the_script_and_leaves_nothing(start, tmp_path):
    config = tmp_path / "accelerate.yaml"
    config.write_text("compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nuse_cpu: true\n")
    arguments = ["--steps=3", "a b", "--config_file", "x"]
    process = start("--accelerate-config", config, "wait", tmp_path / "toy", *arguments)
    pid = read_when_there(tmp_path / "toy.pid")
    assert (tmp_path / "toy.given").read_text() == repr(arguments)
    process.send_signal(signal.SIGTERM)  # accelerate dies of it at once
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert (tmp_path / "toy.stopped").read_text().split() == ["15"], "the script stopped in its own time"
    assert not is_running(pid)


def test_torchrun_runs_the_script_in_two_processes(start, tmp_path):
    process = start("--nproc-per-node=2", "wait", tmp_path / "toy", "--x=1")
    pids = [read_when_there(tmp_path / f"toy.pid{rank}") for rank in range(2)]
    assert [(tmp_path / f"toy.given{rank}").read_text() for rank in range(2)] == ["['--x=1']"] * 2
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=60)
    assert process.returncode == 138
    for rank in range(2):
        assert (tmp_path / f"toy.stopped{rank}").exists()
    assert not any(map(is_running, pids))

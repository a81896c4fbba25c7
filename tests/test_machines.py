"""Several machines: what must be shared is checked first, and a launch of torchrun goes on with its run."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import drifting
import fault_runs
import machines
import psutil
import pytest
from conftest import TASKS
from forked import together
from test_checkpoint import on_both
from test_episodes import make_episode, publish

from pi0.errors import UnusableError
from pi0.ript import machines as checks
from pi0.ript import results
from pi0.ript.checkpoint import Launch, open_run_directory, this_launch
from pi0.ript.checkpoint.files import published
from pi0.ript.checkpoint.launch import FILE
from pi0.ript.config import ConfigError
from pi0.ript.config.loading import use_local_storage
from pi0.ript.machines import require_same_files, require_shared
from pi0.ript.peers import ALONE
from pi0.ript.results import lock_directory
from pi0.ript.supervised import SupervisedSettings
from pi0.ript.supervised.run_layout import begin_again, open_run, write_settings

NOT_HERE = machines.why_not()
on_two_machines = pytest.mark.skipif(NOT_HERE is not None, reason=str(NOT_HERE))


def both(function) -> list:
    """Return what a function returns in each of two processes, in neither of which it may fail."""
    results = on_both(lambda peers: ("done", function(peers)))
    assert all(results), "see the exception above"
    return [result for _, result in results]


# Directories ------------------------------------------------------------------------------------------------


def test_a_shared_directory_is_left_as_it_was(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there/kept").touch()
    both(lambda peers: require_shared(peers, [tmp_path / "there", tmp_path / "new/one"]))
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["kept"]
    assert list((tmp_path / "new/one").iterdir()) == []


def test_a_directory_that_one_machine_has_for_itself_is_refused(tmp_path, monkeypatch):
    """Each process looks into a directory of its own, as with a mount of its own."""
    monkeypatch.setattr(checks, "_PATIENCE_S", 0.5)

    def check(peers):
        with pytest.raises(
            UnusableError, match=rf"not so: {tmp_path}/1 on .*; mount one file system"
        ) as raised:
            require_shared(peers, [tmp_path / "same", tmp_path / str(peers.rank)])
        return str(raised.value)

    first, second = both(check)
    assert first == second
    assert "same" not in first.replace("same path", "")
    assert not (tmp_path / "0").exists(), "what was made for the check is gone"


def test_one_that_cannot_be_written_is_refused_by_all(tmp_path):
    (tmp_path / "file").touch()

    def check(peers):
        with pytest.raises(UnusableError, match=r"file/run on .*, where rank 0 cannot write \("):
            require_shared(peers, [tmp_path / "file/run"])

    both(check)


def test_data_that_a_run_reads_may_be_a_copy(tmp_path):
    for name, size in (("0", 3), ("1", 3), ("other", 4)):
        (tmp_path / name / "data").mkdir(parents=True)
        (tmp_path / name / "data/a").write_bytes(b"x" * size)

    def check(peers):
        require_same_files(peers, [tmp_path / str(peers.rank)])
        with pytest.raises(UnusableError, match=r"other on .*copy it to every machine"):
            require_same_files(peers, [tmp_path / ["0", "other"][peers.rank]])

    both(check)


def test_alone_nothing_is_checked(tmp_path):
    require_shared(ALONE, [tmp_path / "new"])
    require_same_files(ALONE, [tmp_path / "none"])
    assert not (tmp_path / "new").exists()


def test_temporary_files_of_all_processes_are_where_the_settings_say(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/elsewhere")
    monkeypatch.setattr("tempfile.tempdir", None)
    use_local_storage(None)
    assert os.environ["TMPDIR"] == "/elsewhere"
    use_local_storage(str(tmp_path / "new"))
    code = "import tempfile; print(tempfile.gettempdir())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == str(tmp_path / "new")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"storage\.local: expected a directory that .* can write, found"):
        use_local_storage(str(tmp_path / "file/x"))


# Launches ---------------------------------------------------------------------------------------------------

AGENT, OTHER = ("machine-a", 7, 1000.0), ("machine-b", 7, 1000.0)


@pytest.mark.parametrize(
    ("launch", "is_same"),
    [
        (Launch("none", [AGENT]), True),  # the node of the other died
        (Launch("none", [("machine-a", 7, 1003.0), ("machine-c", 9, 2000.0)]), True),  # another has joined
        (Launch("none", [("machine-a", 7, 5000.0)]), False),  # the number was given again
        (Launch("none", [("machine-a", 8, 1000.0)]), False),
        (Launch("job-1", [("machine-c", 1, 0.0)]), False),
    ],
)
def test_without_an_id_the_agents_tell_a_launch(tmp_path, launch, is_same):
    assert not launch.has_begun(tmp_path)
    Launch("none", [AGENT, OTHER]).note(tmp_path)
    assert launch.has_begun(tmp_path) is is_same


def test_an_id_tells_a_launch_whatever_the_machines(tmp_path):
    Launch("job-1", [AGENT]).note(tmp_path)
    assert Launch("job-1", [OTHER]).has_begun(tmp_path)
    assert not Launch("job-2", [OTHER]).has_begun(tmp_path)


def test_a_launch_is_of_all_processes(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert this_launch(ALONE) is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    first, second = both(this_launch)
    assert first == second
    assert first.run_id == "job"
    assert [agent[1] for agent in first.agents] == [os.getppid()]


def test_what_a_launch_began_goes_on_and_what_another_began_is_moved_aside(tmp_path):
    config = SimpleNamespace(output_dir=str(tmp_path), exp_name="run", resume=None)
    mine, others = Launch("mine", [AGENT]), Launch("others", [OTHER])
    path, _ = open_run_directory(config, mine)
    (path / "kept").touch()
    assert open_run_directory(config, mine) == (path, None)
    assert (path / "kept").exists()
    open_run_directory(config, others)
    assert not (path / "kept").exists()
    assert (tmp_path / "run.1/kept").exists()
    assert json.loads((path / FILE).read_text())["run_id"] == "others"


def test_a_process_that_was_started_again_waits_for_the_lock_of_a_machine_that_died(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "_LEASE_S", 20)
    lock_directory(tmp_path / "run")
    held = results._locks.pop(tmp_path / "run")  # as if another process had it
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    with pytest.raises(results.RunInUseError):
        lock_directory(tmp_path / "run")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    threading.Timer(0.3, held.close).start()
    lock_directory(tmp_path / "run")


def test_a_supervised_run_that_its_launch_began_goes_on_even_with_overwrite_or_no_name(tmp_path):
    mine, others = Launch("mine", [AGENT]), Launch("others", [OTHER])
    for more in ({"exp_name": "run", "overwrite": True}, {}):
        settings = SupervisedSettings(output_dir=str(tmp_path), **more)
        path, _ = open_run(settings, mine)
        write_settings(path, settings, 2, mine)
        begin_again(path, mine)
        assert (path / FILE).exists(), "torchrun started it again, and it is as it was"
        assert open_run(settings, mine)[0] == path
        other, _ = open_run(settings, others)
        assert (other == path) is bool(more)
        if more:
            begin_again(path, others)
            assert not (path / FILE).exists()


# Two machines -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where the runs are, with the policy that they start from."""
    directory = tmp_path_factory.mktemp("place")
    drifting.prepare(directory, tasks=[*TASKS, "do thing 0", "do thing 1"])
    episodes = {i: make_episode(i, length=12 + i, size=8) for i in range(3)}
    labels = {"instruction": TASKS[0], "task_id": "drifting/far"}
    episodes = {i: replace(e, labels=replace(e.labels, **labels)) for i, e in episodes.items()}
    publish(directory / "data", episodes)
    return directory


SHORT = [
    *("rounds=1", "value.pretraining.steps=3", "value.finetuning.steps=3", "value.width=16"),
    *("value.pretraining.batch_size=8", "value.finetuning.batch_size=8", "rollouts.num_states=6"),
    *("rollouts.per_state=2", "rollouts.pool_size=12", "finetuning.training.steps=4"),
    *("finetuning.training.batch_size=8", "gates.min_concordance=0", "gates.max_fraction_error=1"),
    *("validation.rollouts_per_task=2", "eval.rollouts_per_task=5", "task.num_parallel_envs=2"),
    *("task.max_episode_length=20", "filtered_rounds=0", "baselines=false"),
]
"""Of RECAP."""


def words_of(command: str, place: Path, name: str, *more: str) -> list[str]:
    """Return the words of a small run, whose directory is {place}/out/{name}."""
    start = f"policy_path={place}/start"
    words = {
        "recap": lambda: fault_runs.recap(*SHORT, *more),
        "pi0-train": lambda: fault_runs.train(*more),
    }.get(command, lambda: fault_runs.rung(command, start, f"warm_start_dir={place}/warm", *more))()
    words = [word for word in words if not word.startswith("exp_name=")]
    return [command, *(word.format(place=place) for word in words), f"exp_name={name}"]


@on_two_machines
def test_a_directory_that_is_not_shared_is_refused_within_seconds(place):
    words, logs = words_of("13", place, "private"), [place / "private-a", place / "private-b"]
    (place / "out").mkdir(exist_ok=True)
    with machines.two_machines() as two:
        hidden = [None, place / "out"]
        runs = [two.torchrun(i, words, logs[i], hide=hidden[i]) for i in range(2)]
        machines.wait_for(lambda: "configuration valid" in logs[0].read_text(), "start", *logs)
        since = time.monotonic()
        machines.wait_for(lambda: all(run.poll() for run in runs), "end", *logs, seconds=60)
        seconds = time.monotonic() - since
    for log in logs:
        said = log.read_text()
        assert said.count("error: expected directories that all machines share") == 1, said
        assert f"{place}/out/private on machine-b;" in said
    assert seconds < 20, "of which six for a slow file system, and the rest for connecting and ending"
    assert not (place / "out/private").exists()


COMMANDS = ("10", "11", "12", "13", "final", "recap", "pi0-train")


@pytest.fixture(scope="module")
def on_two_and_on_one(place):
    """Every command, one after the other: on two machines, and in two processes of one."""
    logs = [place / f"every-{letter}" for letter in "ab"]
    words = [word for name in COMMANDS for word in (machines.THEN, *words_of(name, place, f"{name}-two"))]
    with machines.two_machines() as two:
        runs = [two.torchrun(i, words[1:], logs[i]) for i in range(2)]
        assert [run.wait(900) for run in runs] == [0, 0], logs[0].read_text()[-3000:]
    for name in COMMANDS:
        together(2, place / "one", on_one, *words_of(name, place, f"{name}-one"))


def on_one(*words: str) -> None:
    try:
        machines.become(*words)
    except SystemExit as stop:
        if stop.code:
            raise RuntimeError(f"{words[0]} ended with {stop.code}") from stop


@pytest.mark.slow
@on_two_machines
@pytest.mark.usefixtures("on_two_and_on_one")
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_gives_bit_for_bit_what_two_processes_of_one_machine_give(place, command):
    two, one = (weights(place / f"out/{command}-{kind}") for kind in ("two", "one"))
    assert two
    assert two == one
    if command in ("13", "final"):
        assert drifting.outcome(place / f"out/{command}-two") == drifting.outcome(
            place / f"out/{command}-one"
        )


def weights(run_dir: Path) -> dict[str, bytes]:
    """All weights that a run has left."""
    files = sorted(run_dir.rglob("*.safetensors"))
    return {str(file.relative_to(run_dir)): file.read_bytes() for file in files}


ELASTIC = ("--nnodes=1:2", "--max-restarts=3", "--rdzv-conf=last_call_timeout=5")
UNSHARED_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""With it, torchrun survives other nodes than before; see docs/cluster.md."""
LONG = {
    "13": ["training.num_train_steps=6"],
    "pi0-train": ["steps=3000", "save_freq=20"],
    "recap": ["sft.steps=2000", "save_minutes=0.05"],
}


@pytest.mark.slow
@on_two_machines
@pytest.mark.parametrize("command", list(LONG))
def test_a_run_goes_on_when_a_node_dies_and_takes_in_one_that_joins(place, command):
    name = f"{command}-elastic"
    words, logs = words_of(command, place, name, *LONG[command]), [place / f"{name}-{x}" for x in "abc"]
    run_dir = place / "out" / name
    with machines.two_machines() as two:
        more = {**UNSHARED_STORE, "SLOW": "1"}
        first, _ = (two.torchrun(i, words, logs[i], *ELASTIC, **more) for i in range(2))
        machines.wait_for(lambda: checkpoints(run_dir), "a checkpoint of two", *logs[:2])
        two.kill(1)
        machines.wait_for(lambda: "processes 2 -> 1" in logs[0].read_text(), "going on alone", logs[0])
        assert first.poll() is None
        of_two = set(checkpoints(run_dir))
        machines.wait_for(lambda: set(checkpoints(run_dir)) - of_two, "a checkpoint of one", logs[0])
        second = two.torchrun(1, words, logs[2], *ELASTIC, **more)
        machines.wait_for(lambda: "processes 1 -> 2" in logs[0].read_text(), "taking it in", logs[0])
        assert [run.wait(400) for run in (first, second)] == [0, 0], logs[0].read_text()[-3000:]
    assert "Traceback" not in logs[0].read_text().split("processes 1 -> 2")[0], "a lost node is one line"
    assert weights(run_dir)
    assert not list(place.glob(f"out/{name}.*")), "nothing was moved aside"
    if command == "13":
        rows = drifting.outcome(run_dir)["rows"]
        assert [row["iteration"] for row in rows] == list(range(6))


def checkpoints(run_dir: Path) -> list[Path]:
    return [*published(run_dir), *run_dir.glob("*.partial/checkpoint-*")]


def test_a_process_whose_launcher_is_killed_gets_a_sigterm(tmp_path):
    """As with torchrun: its processes would go on for nobody, or wait for a peer."""
    said = tmp_path / "said"
    rank = "import time; from pi0.ript.machines import end_with_launcher; end_with_launcher()\n"
    rank += f"open({str(tmp_path / 'begun')!r}, 'w').close(); time.sleep(60)"
    launcher = "import subprocess, sys\n"
    launcher += (
        f"rank = subprocess.Popen([sys.executable, '-c', {rank!r}], stderr=open({str(said)!r}, 'w'))\n"
    )
    launcher += "print(rank.pid, flush=True); rank.wait()"
    parent = subprocess.Popen(
        [sys.executable, "-c", launcher],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    process = psutil.Process(int(parent.stdout.readline()))
    try:
        while not (tmp_path / "begun").exists():
            assert parent.poll() is None
            time.sleep(0.02)
        parent.kill()
        parent.wait()
        process.wait(20)
    finally:
        if process.is_running():
            process.kill()
    assert f"the launcher (process {parent.pid}) is gone: ending this process" in said.read_text()

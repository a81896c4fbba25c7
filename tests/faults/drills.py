"""Runs of rung 13 with a fault in them, on the suite that only adds, in processes of their own.

A fault is written WHAT@RANK:EVENT:NUMBER, such as SIGKILL@1:update:3: rank 1 kills itself before its third
optimizer step. `forked` starts processes from here, so that nothing is imported again; `torchrun` starts them
as users do:

    PYTHONPATH=.:tests FAULT=SIGKILL@1:update:3 python -m faults.drills DIRECTORY NAME WORD ...

With FAULT_ONCE=FILE it happens once, whoever is started again; with SLOW_WRITE_S a save is slow after it.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import drifting
import psutil
from forked import end_process, free_port

from pi0.ript import distributed, evaluate, groups, interruption, loss, monitoring, report
from pi0.ript.checkpoint import contents, snapshot
from pi0.ript.checkpoint.journal import EpisodeJournal
from pi0.ript.rollout import GuidedPolicy

EVENTS = (
    *(
        "before",
        "rollout",
        "kept",
        "loss",
        "update",
        "save",
        "write",
        "publish",
        "published",
        "after",
        "gather",
    ),
)
"""kept: an episode of a collection is on the disk; before, rollout, after: the policy infers."""
"""What a fault can wait for, each just before it: a chunk of actions in the evaluation before training, in a
collection, in the evaluation after it; a loss; an optimizer step; and in a checkpoint: the random states, on
each rank; then, on rank 0, when half of the weights are written, the renaming, and what follows it; and what
the processes exchange."""
ROOT = Path(__file__).parent.parent.parent
PATIENCE_S = 150.0
_GRACE_S = 25.0  # for the others, when one has ended with an error


class UserError(Exception):
    """What code of a user raises."""


@dataclass
class Fault:
    """What happens, on which rank, at which event; see the module's text."""

    what: str
    rank: int
    event: str
    number: int

    @classmethod
    def of(cls, text: str) -> "Fault":
        what, _, where = text.partition("@")
        rank, event, number = where.split(":")
        assert event in EVENTS, event
        return cls(what, int(rank), event, int(number))

    def happens(self, event: str) -> bool:
        """Count an event; do what is to be done there, or return true where the caller does it."""
        if event != self.event or int(os.environ.get("RANK", "0")) != self.rank:
            return False
        self.number -= 1
        if self.what == "jump" and self.number <= 0:  # libfaketime reads the file
            offset = "-1h" if self.number == 0 else "+2d"
            Path(os.environ["FAKETIME_TIMESTAMP_FILE"]).write_text(f"{offset}\n")
            return False
        if self.number:
            return False
        if once := os.environ.get("FAULT_ONCE"):
            Path(once).touch()
        target, _, name = self.what.rpartition("-")
        if self.what == "raise":
            raise UserError("a mistake of the user")
        if not hasattr(signal, name):
            return True
        send(target, getattr(signal, name))
        return False


def send(target: str, number: int) -> None:
    """Send a signal to this process (empty: once), to its launcher, its first worker, or to its group."""
    if target == "launcher":
        os.kill(os.getppid(), number)
    elif target == "worker":
        psutil.Process().children()[0].send_signal(number)
    elif target == "all":
        os.killpg(0, number)
    else:
        os.kill(os.getpid(), number)
    if target == "twice":
        time.sleep(2.5)  # longer than what counts as one request
        os.kill(os.getpid(), number)
    if target:
        time.sleep(0.5)  # until it has come; the launcher's may take longer
    deadline = time.monotonic() + 10.0
    while target == "launcher" and time.monotonic() < deadline and not interruption.stop_requested():
        time.sleep(0.05)


def install(fault: str) -> None:
    """Have a fault happen in this process; empty: none."""
    report.write_report = lambda *_: None  # plots take longer than these runs
    once = os.environ.get("FAULT_ONCE")
    if not fault or (once and Path(once).exists()):
        return
    happens, phase = Fault.of(fault).happens, ["before"]
    _before(snapshot, "rng_file", lambda: happens("save"))
    _before(snapshot, "publish", lambda: happens("publish"))
    _before(snapshot, "prune", lambda: happens("published"))
    _before(monitoring, "take_step", lambda: happens("update"))
    _before(GuidedPolicy, "chunks", lambda: happens(phase[0]))
    _in_phase(groups, "collect_groups", phase, "rollout")
    _after(EpisodeJournal, "write", lambda: phase[0] == "rollout" and happens("kept"))
    _in_phase(evaluate, "evaluate", phase, "after")
    _half_a_file(happens)
    _wrong_numbers(happens, fault.partition("@")[0])
    _skipped_exchange(happens)


def _before(owner: object, name: str, happen: Callable[[], object]) -> None:
    function = getattr(owner, name)

    def watched(*arguments, **options):
        happen()
        return function(*arguments, **options)

    setattr(owner, name, watched)


def _after(owner: object, name: str, happen: Callable[[], object]) -> None:
    function = getattr(owner, name)

    def watched(*arguments, **options):
        result = function(*arguments, **options)
        happen()
        return result

    setattr(owner, name, watched)


def _in_phase(owner: object, name: str, phase: list[str], inside: str) -> None:
    """Name the chunks of actions inside a function; the first evaluation comes before any collection."""
    function = getattr(owner, name)

    def named(*arguments, **options):
        phase[0] = inside if inside == "rollout" or phase[0] != "before" else "before"
        return function(*arguments, **options)

    setattr(owner, name, named)


def _half_a_file(happens: Callable[[str], bool]) -> None:
    write = contents.write_tensors

    def watched(file, tensors):
        write(file, tensors)
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        begun = time.monotonic()
        happens("write")
        if time.monotonic() - begun > 0.1:  # it was now
            time.sleep(float(os.environ.get("SLOW_WRITE_S", "0")))
        file.write_bytes(whole)

    contents.write_tensors = watched


def _wrong_numbers(happens: Callable[[str], bool], what: str) -> None:
    forward = loss.AdvantageLoss.forward

    def watched(*arguments, **options):
        value = forward(*arguments, **options)
        if not happens("loss"):
            return value
        if what == "nan-gradient":
            value.register_hook(lambda gradient: gradient * float("nan"))
            return value
        return value * float("nan")

    loss.AdvantageLoss.forward = watched


def _skipped_exchange(happens: Callable[[str], bool]) -> None:
    gather = distributed.World.gather

    def watched(self, items):
        return [items] * self.size if happens("gather") else gather(self, items)

    distributed.World.gather = watched


# Processes --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """How a process ended, and what it said."""

    code: int
    said: str

    def require_one_line(self, *words: str, code: int = 1) -> None:
        """Assert that it ended with a code and one line, which has all these words."""
        assert self.code == code, self.said[-3000:]
        assert "Traceback" not in self.said, self.said[-3000:]
        lines = [line for line in self.said.splitlines() if "error: " in line]
        assert len(lines) == 1, self.said[-3000:]
        for word in words:
            assert word in lines[0], lines[0]


def forked(
    place: Path,
    name: str,
    *words: str,
    fault: str = "",
    size: int = 2,
    run: Callable[..., object] | None = None,
    prepare: Callable[[], object] = lambda: None,
) -> list[Ended]:
    """Run rung 13, or `run`, in processes that torchrun could have started; return how each ended."""
    port, logs = free_port(), [place / f"{name}.rank{rank}" for rank in range(size)]
    started: dict[int, int] = {}
    group = 0
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, group)
            world = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "RANK": rank, "LOCAL_RANK": rank}
            more = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} if size > 1 else {}
            os.environ.update({key: str(value) for key, value in (world | more).items()})
            os.environ.pop("TORCHELASTIC_RUN_ID", None)
            end_process(partial(_begin, logs[rank], fault, run or drifting.run, place, name, words, prepare))
        started[rank] = pid
        group = group or pid
        os.setpgid(pid, group) if _is_here(pid) else None
    codes = _wait(started)
    return [Ended(codes[rank], logs[rank].read_text(errors="replace")) for rank in range(size)]


def _is_here(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _begin(
    log: Path,
    fault: str,
    run: Callable[..., object],
    place: Path,
    name: str,
    words: Sequence[str],
    prepare: Callable[[], object],
) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", 1, closefd=False) for stream in (1, 2))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    install(fault)
    prepare()
    run(place, name, *words)


def _wait(started: dict[int, int]) -> dict[int, int]:
    """Return the exit codes by rank; as torchrun does, end the others when one has ended with an error."""
    codes: dict[int, int] = {}
    deadline = time.monotonic() + PATIENCE_S
    while len(codes) < len(started):
        for rank in started.keys() - codes.keys():
            pid, status = os.waitpid(started[rank], os.WNOHANG)
            if pid:
                codes[rank] = os.waitstatus_to_exitcode(status)
                if codes[rank]:
                    deadline = min(deadline, time.monotonic() + _GRACE_S)
        if time.monotonic() > deadline:
            for rank in started.keys() - codes.keys():
                os.kill(started[rank], signal.SIGKILL)
        time.sleep(0.02)
    return codes


def torchrun(
    place: Path, name: str, *words: str, fault: str = "", options=(), **more: str
) -> subprocess.Popen:
    """Start rung 13 in two processes as users do; its output goes to DIRECTORY/NAME.torchrun."""
    program = ["-m", "faults.drills", str(place), name, *words]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", *options]
    paths = os.pathsep.join(str(ROOT / part) for part in ("", "tests"))
    environment = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    environment |= {"FAULT": fault, "DRILL": str(place / name)}
    with log_of(place, name).open("a") as log:
        return subprocess.Popen(
            [*command, f"--master_port={free_port()}", *program],
            env=os.environ | environment | more,
            stdout=log,
            stderr=log,
            cwd=ROOT,
            start_new_session=True,
        )


def log_of(place: Path, name: str) -> Path:
    """Return the file with what torchrun and its processes said."""
    return place / f"{name}.torchrun"


def members(place: Path, name: str) -> list[int]:
    """Return the processes of a run of `torchrun` that are alive, each in a group of its own."""
    alive = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("DRILL") == str(place / name):
                alive.append(process.pid)
    return alive


@contextmanager
def known() -> Iterator[None]:
    """Make the suite known meanwhile."""
    drifting.install()
    try:
        yield
    finally:
        drifting.uninstall()


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    drifting.install()
    install(os.environ.get("FAULT", ""))
    drifting.run(Path(sys.argv[1]), *sys.argv[2:])

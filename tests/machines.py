"""Two machines on this one: network namespaces with a cable between them, host names and mounts of their own.

Started as a program it runs a command as `fault_runs` does, on the suite that only adds; or several, one
after the other, for which all is imported once:

    python tests/machines.py NAME WORD ... [--then NAME WORD ...]
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parent.parent
_NAMES = ("machine-a", "machine-b")
PORT = 29400
THEN = "--then"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def why_not() -> str | None:
    """Return why this machine cannot play two; None if it can."""
    if sys.platform != "linux" or shutil.which("ip") is None:
        return "needs the command ip (Debian: apt-get install iproute2)"
    name = f"pi0-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"network namespaces are not allowed here ({made.stderr.strip()})"
    entered = ["ip", "netns", "exec", name, "unshare", "--mount", "--uts", "hostname", "x"]
    done = subprocess.run(entered, capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", name], check=True)
    return f"namespaces are not allowed here ({done.stderr.strip()})" if done.returncode else None


class Machines:
    """Two machines, which share the disk of this one."""

    def __init__(self) -> None:
        self.spaces = [f"pi0-{os.getpid()}-{name}" for name in _NAMES]
        self.cables = [f"pi0{os.getpid()}{letter}" for letter in "ab"]
        self.addresses = ["10.99.0.1", "10.99.0.2"]
        self.hosts = Path(tempfile.mkstemp(prefix="hosts")[1])
        lines = [f"{a} {n}\n" for a, n in zip(self.addresses, _NAMES, strict=True)]
        self.hosts.write_text("127.0.0.1 localhost\n" + "".join(lines))
        for space in self.spaces:
            _ip("netns", "add", space)
            _ip("-n", space, "link", "set", "lo", "up")
        (a, b), (cable_a, cable_b) = self.spaces, self.cables
        _ip("link", "add", cable_a, "netns", a, "type", "veth", "peer", "name", cable_b, "netns", b)
        for space, cable, address in zip(self.spaces, self.cables, self.addresses, strict=True):
            _ip("-n", space, "addr", "add", f"{address}/24", "dev", cable)
            _ip("-n", space, "link", "set", cable, "up")

    def start(
        self, number: int, command: list[str], log: Path, *, hide: Path | None = None, **environment: str
    ) -> subprocess.Popen:
        """Start a command on a machine, on which `hide` is an empty directory of its own."""
        mounts = f"mount --bind {self.hosts} /etc/hosts; "
        if hide is not None:
            mounts += f"mount -t tmpfs none {hide}; "
        script = f'hostname {_NAMES[number]}; {mounts}exec "$@"'
        inside = ["ip", "netns", "exec", self.spaces[number], "unshare", "--mount", "--uts"]
        with log.open("a") as output:
            return subprocess.Popen(
                [*inside, "sh", "-c", script, "sh", *command],
                env={**surroundings(), "GLOO_SOCKET_IFNAME": self.cables[number], **environment},
                stdout=output,
                stderr=output,
            )

    def torchrun(self, number: int, words: list[str], log: Path, *options: str, **more) -> subprocess.Popen:
        """Start torchrun on a machine; machine 0 is the host of the rendezvous."""
        rendezvous = ["--rdzv-backend=c10d", f"--rdzv-endpoint={self.addresses[0]}:{PORT}"]
        program = [str(ROOT / "tests/machines.py"), *words]
        counts = ["--nproc-per-node=1", *(options or ("--nnodes=2",))]
        return self.start(number, [*TORCHRUN, *rendezvous, *counts, *program], log, **more)

    def kill(self, number: int) -> None:
        """End all that runs on a machine, as a power cut does."""
        for pid in _ip("netns", "pids", self.spaces[number]).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def close(self) -> None:
        """Take them apart."""
        for number, space in enumerate(self.spaces):
            self.kill(number)
            _ip("netns", "del", space)
        self.hosts.unlink()


@contextlib.contextmanager
def two_machines() -> Iterator[Machines]:
    """Give two machines, and take them apart afterwards."""
    machines = Machines()
    try:
        yield machines
    finally:
        machines.close()


def surroundings() -> dict[str, str]:
    """Return the environment of a run here, quiet and in one thread."""
    paths = os.pathsep.join(str(ROOT / part) for part in ("", "tests", "tools"))
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def wait_for(is_so, what: str, *logs: Path, seconds: float = 180) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            said = "\n".join(f"{log}:\n{log.read_text()[-5000:]}" for log in logs)
            raise TimeoutError(f"{what}: not in {seconds:g} s\n{said}")
        time.sleep(0.1)


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def become(name: str, *words: str) -> None:
    """Run a command in this process, on the suite that only adds."""
    import drifting
    import fault_runs

    drifting.install()
    escaped = tuple(word.replace("{", "{{").replace("}", "}}") for word in words)  # are formatted there
    fault_runs.start(fault_runs.Case(name, "", escaped, 0, ""), Path())


def _become_in_turn(commands: list[list[str]]) -> None:
    """Run commands in processes forked from this one, all of which torchrun's agent has as one."""
    import fault_runs

    for number, command in enumerate(commands):
        pid = os.fork()
        if pid == 0:
            os.environ["TORCHELASTIC_RESTART_COUNT"] = str(number)  # where they meet, each time elsewhere
            fault_runs._end(partial(become, *command))
        if code := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
            sys.exit(f"{command[0]}: ended with {code}")


if __name__ == "__main__":
    starts = [i for i, word in enumerate(sys.argv) if i == 0 or word == THEN]
    parts = [sys.argv[a + 1 : b] for a, b in zip(starts, [*starts[1:], len(sys.argv)], strict=True)]
    if len(parts) == 1:
        become(*parts[0])
    else:
        _become_in_turn(parts)

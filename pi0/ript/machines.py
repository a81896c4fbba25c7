"""Several machines as one run: what they must all see at the same place, and the end of their launchers.

Without this check a directory that is not shared is noticed at the first checkpoint, hours later.
"""

import hashlib
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from pi0.errors import UnusableError
from pi0.ript.peers import Peers

_PATIENCE_S = 6.0  # a network file system can show a new file late
_POLL_S = 0.2
_LAUNCHER_LOOK_S = 1.0
_HOST = socket.gethostname()


def require_shared(peers: Peers, directories: Sequence[str | Path]) -> None:
    """Raise unless all processes find the same directory at each path; those that are missing are made.

    Rank 0 writes a token into each, which every process looks for.

    Raises:
        UnusableError: One is not shared; names it and the machines that see another.
    """
    if peers.size == 1:
        return
    places = [Path(directory).expanduser().absolute() for directory in directories]
    # Of rank 0 alone: elsewhere a network file system would remember for a while that it is not there.
    is_new = [not place.exists() for place in places] if peers.rank == 0 else []
    name, deadline = f".shared-{uuid.uuid4().hex}", time.monotonic() + _PATIENCE_S
    problems = [problem for place in places if (problem := _write(place / name))] if peers.rank == 0 else []
    ((name, is_written),) = peers.gather([(name, not problems)])[0]
    if is_written:
        problems = [f"{place} on {_HOST}" for place in places if not _is_there(place / name, deadline)]
    everybody = _gathered(problems, peers)
    if peers.rank == 0:
        for place, new in zip(places, is_new, strict=True):
            with suppress(OSError):
                (place / name).unlink()
                if new and everybody:
                    place.rmdir()
    _refuse(
        everybody,
        "expected directories that all machines share, at the same path",
        "mount one file system there on every machine (storage.local is for temporary files)",
    )


def require_same_files(peers: Peers, directories: Sequence[str | Path]) -> None:
    """Raise unless all processes see the same files below each directory: names and sizes.

    For data that a run only reads: a copy on each machine will do, and nothing is written there.

    Raises:
        UnusableError: One sees others; names the directory and the machine.
    """
    if peers.size == 1:
        return
    places = [Path(directory).expanduser().absolute() for directory in directories]
    listings = peers.gather([_listing(place) for place in places])
    differ = zip(places, listings[0], listings[peers.rank], strict=True)
    unlike = [f"{place} on {_HOST}" for place, first, here in differ if first != here]
    _refuse(
        _gathered(unlike, peers),
        "expected the files that rank 0 sees",
        "share the directory, or copy it to every machine",
    )


def _gathered(problems: list[str], peers: Peers) -> list[str]:
    return list(dict.fromkeys(problem for part in peers.gather(problems) for problem in part))


def _refuse(problems: list[str], expected: str, remedy: str) -> None:
    """Raise if a process has a problem; one process of each machine says so."""
    if problems and os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(2)  # torchrun ends the others as soon as one has ended
        raise SystemExit(2)
    if problems:
        raise UnusableError(f"{expected}; not so: {', '.join(problems)}; {remedy}")


def _write(token: Path) -> str:
    """Write a token; return what is wrong if that cannot be done."""
    try:
        token.parent.mkdir(parents=True, exist_ok=True)
        token.touch()
    except OSError as error:
        return f"{token.parent} on {_HOST}, where rank 0 cannot write ({error})"
    return ""


def _is_there(token: Path, deadline: float) -> bool:
    while not token.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _listing(directory: Path) -> str:
    return hashlib.sha256("\n".join(_entries(directory)).encode()).hexdigest()


def _entries(directory: Path) -> Iterator[str]:
    for file in sorted(directory.rglob("*")):
        if file.is_file():
            yield f"{file.relative_to(directory).as_posix()} {file.stat().st_size}"


def end_with_launcher() -> None:
    """Let this process get a SIGTERM when the one that started it, torchrun's own, is gone.

    Nobody would start it again or end it when a peer is lost, and its run would stay in use.
    """
    launcher = os.getppid()

    def look() -> None:
        while os.getppid() == launcher:
            time.sleep(_LAUNCHER_LOOK_S)
        rank = os.environ.get("RANK", "0")
        sys.stderr.write(f"\n[rank {rank}] the launcher (process {launcher}) is gone: ending this process\n")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=look, name="launcher", daemon=True).start()

"""Disks that are full, small, read-only: tmpfs in a mount namespace of a process of its own (Linux, root)."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forked import together


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True)


def own_mounts() -> None:
    """Let this process and its children mount what no other one sees."""
    os.unshare(os.CLONE_NEWNS)
    mount("--make-rprivate", "/")


def why_not() -> str | None:
    """Return why nothing can be mounted here; None if it can."""
    if sys.platform != "linux":
        return "needs mount namespaces (Linux)"
    entered = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    done = subprocess.run(entered, capture_output=True, text=True, check=False)
    return f"mounting is not allowed here ({done.stderr.strip()})" if done.returncode else None


NOT_HERE = why_not()
can_mount = pytest.mark.skipif(NOT_HERE is not None, reason=str(NOT_HERE))


def on_a_disk(
    place: Path, name: str, function: Callable[..., Any], *arguments: Any, size: str = "64m"
) -> Any:
    """Return what the function returns when it is given an empty disk, and the arguments.

    The disk is gone afterwards; what the function returns is pickled.
    """
    disk = place / f"{name}-disk"
    disk.mkdir()
    return together(1, place / f"{name}-found", _on_a_disk, disk, size, function, arguments)[0]


def _on_a_disk(disk: Path, size: str, function: Callable[..., Any], arguments: Any) -> Any:
    own_mounts()
    mount("-t", "tmpfs", "-o", f"size={size}", "none", str(disk))
    return function(disk, *arguments)


def filler(disk: Path) -> Path:
    return disk / "filler"


def fill(disk: Path) -> None:
    """Write until the disk is full."""
    with filler(disk).open("ab", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:
                continue


def unfinished(directory: Path) -> list[str]:
    """Return what is left of files and directories that were not finished."""
    names = ("*.partial", "*.part", ".checkpoint*", "*.tmp")
    return sorted(str(path.relative_to(directory)) for name in names for path in directory.rglob(name))

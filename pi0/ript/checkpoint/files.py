"""Checkpoints as directories that are there completely or not at all, each with hashes of all its files.

A directory is written under a temporary name, every file is flushed to the disk, the manifest with size and
SHA-256 of the others comes last, and renaming publishes it. What is to be deleted is renamed away first.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pi0.ript.files import FORMAT, FormatError, hash_file, read_versioned_json

MANIFEST = "checkpoint.json"
UNTRAINED = "untrained"
"""The directory, in that of a run, of the weights that it does not train; checkpoints refer to it."""
_NAME = re.compile(r"checkpoint-(\d+)(?:-(\d+))?")


class SnapshotError(RuntimeError):
    """A checkpoint cannot be written or used; the message names the file, the reason and the remedy."""

    explains_itself = True


def checkpoint_path(run_dir: Path, iteration: int, step: int = 0) -> Path:
    """Return the directory of the checkpoint before an iteration, or before a step inside it."""
    return run_dir / (f"checkpoint-{iteration}-{step}" if step else f"checkpoint-{iteration}")


def position(path: Path) -> tuple[int, int] | None:
    """Return (iteration, step) of a checkpoint by its directory's name, None if it has no such name."""
    match = _NAME.fullmatch(path.name)
    return (int(match[1]), int(match[2] or 0)) if match else None


def published(run_dir: Path) -> list[Path]:
    """Return the checkpoints of a run by position, corrupt ones too."""
    checkpoints = {p: path for path in run_dir.glob("checkpoint-*") if (p := position(path))}
    return [checkpoints[p] for p in sorted(checkpoints)]


def partial_path(path: Path) -> Path:
    """Return where a checkpoint is before it is published."""
    return path.with_name(f".{path.name}.partial")


def begin(path: Path) -> Path:
    """Return an empty directory to write a checkpoint to; what interrupted writes left is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(".checkpoint-*"):
        shutil.rmtree(stale)
    partial = partial_path(path)
    partial.mkdir()
    return partial


def publish(partial: Path, path: Path, facts: Mapping[str, Any], outside: Iterable[Path] = ()) -> None:
    """Make a written directory the checkpoint at `path`; files `outside`, below its parent, belong to it."""
    written = sorted(file for file in partial.rglob("*") if file.is_file())
    files = {str(file.relative_to(partial)): file for file in written}
    files |= {f"../{file.relative_to(path.parent)}": file for file in outside}
    entries = {name: {"size": file.stat().st_size, "sha256": hash_file(file)} for name, file in files.items()}
    body = {"format": FORMAT, **facts, "files": entries}
    (partial / MANIFEST).write_text(json.dumps({"sha256": _digest(body), **body}, indent=1) + "\n")
    for file in [*written, partial / MANIFEST]:
        _flush(file)
    for directory in {file.parent for file in written} | {partial}:
        _flush(directory)
    if path.exists():  # a corrupt one, or of a position that was reached again
        path.rename(path.with_name(f".{path.name}.replaced"))
    partial.rename(path)
    _flush(path.parent)
    shutil.rmtree(path.with_name(f".{path.name}.replaced"), ignore_errors=True)


def verify(path: Path, hashes: bool = True) -> dict[str, Any]:
    """Return the manifest of a checkpoint whose files are all as they were written.

    Args:
        path: The checkpoint.
        hashes: Also read every file; otherwise sizes must do.

    Raises:
        SnapshotError: A file is not as it was written; says the first one, and why.
        FormatError: A later version wrote it.
    """
    try:
        manifest = read_versioned_json(path / MANIFEST)
        expected = manifest.pop("sha256")
        entries = manifest["files"]
    except FormatError:
        raise
    except FileNotFoundError:
        raise SnapshotError(f"{path}: {MANIFEST} is missing, so this is no finished checkpoint") from None
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise SnapshotError(f"{path}: {MANIFEST} is damaged ({type(error).__name__}: {error})") from None
    if _digest(manifest) != expected:
        raise SnapshotError(f"{path}: {MANIFEST} is damaged (its content has another hash)")
    for name, entry in entries.items():
        file = path / name
        if not file.is_file():
            raise SnapshotError(f"{path}: {name} is missing")
        if (size := file.stat().st_size) != entry["size"]:
            raise SnapshotError(f"{path}: {name} has {size} bytes, expected {entry['size']}")
        if hashes and hash_file(file) != entry["sha256"]:
            raise SnapshotError(f"{path}: {name} is damaged (its content has another hash)")
    return manifest


def prune(newest: Path, keep_last: int) -> None:
    """Delete what is older than the checkpoint just published, but for the last complete ones.

    Of those inside an iteration only the newest of all stays: they need episodes that are deleted.
    """
    older = published(newest.parent)
    older = older[: older.index(newest)]
    keep = [path for path in older if _is_complete(path) and position(path)[1] == 0]  # pyright: ignore[reportOptionalSubscript]
    kept = set(keep[len(keep) - min(keep_last - 1, len(keep)) :])
    for path in older:
        if path not in kept:
            hidden = path.with_name(f".{path.name}.deleted")
            path.rename(hidden)
            shutil.rmtree(hidden)


def _is_complete(path: Path) -> bool:
    try:
        verify(path, hashes=False)
    except SnapshotError:
        return False
    return True


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _flush(path: Path) -> None:
    """Wait until a file or a directory is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

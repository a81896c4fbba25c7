"""Files: written in one step, hashed, named; and settings as the plain values that files hold."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import pi0
from pi0.errors import UnusableError

FORMAT = 1
"""Of the files that say what a run or a data set is (manifest, state, lineage, results).

Files without a number are of format 0, that of version 0.1.0.
"""

_ADDED_LABELS = "meta/advantages*.json"


class FormatError(UnusableError):
    """A file was written by a later version, whose format this one does not know."""


def require_format(values: Mapping[str, Any], path: Path) -> None:
    """Raise FormatError if the content of a file has the number of a later format than this version's."""
    number = values.get("format", 0)
    if number not in range(FORMAT + 1):
        raise FormatError(
            f"{path} has format {number}: a later version of pi0-ript made it, this one reads formats up to "
            f"{FORMAT}; install that version or a newer one to use it"
        )


def read_versioned_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file that has a format number, or none if it is of version 0.1.0.

    Raises:
        FormatError: A later version wrote it.
    """
    values = json.loads(path.read_text())
    require_format(values, path)
    return values


def path_argument(text: str) -> Path:
    """Return the path that a word of a command line names; `~` is the home directory. A type for argparse."""
    return Path(text).expanduser()


@contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Have an error of the disk, which only opening names the file of, name it."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; afterwards it is the file at `path`, flushed to the disk.

    Whoever reads `path` meanwhile, or after a crash, sees the whole old file or the whole new one. If the
    block raises, the temporary file is removed and `path` stays.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        with naming_file(path):
            yield partial
            with partial.open("rb") as file:
                os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file in one step, see `replacing`."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8) in one step, see `replacing`."""
    write_bytes(path, text.encode())


def write_json(path: Path, values: Any) -> None:
    """Write plain values as a JSON file in one step, see `replacing`."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def unused_path(path: Path) -> Path:
    """Return the first of PATH.1, PATH.2, ... at which there is nothing."""
    number = 1
    while (unused := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return unused


def hash_file(file: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_files(directory: Path) -> str:
    """Return the SHA-256 of the names and contents of all files below a directory, or of one file's content.

    Labels that `pi0-advantage` added to a data set do not count: they are made from it.
    """
    digest = hashlib.sha256()
    if directory.is_file():
        digest.update(directory.read_bytes())
    files = (path for path in directory.rglob("*") if path.is_file())
    for file in sorted(path for path in files if not _is_added_label(path)):
        digest.update(f"{file.relative_to(directory).as_posix()}\n".encode())
        digest.update(bytes.fromhex(hash_file(file)))
    return digest.hexdigest()


def _is_added_label(file: Path) -> bool:
    """Return whether a file is a label beside the frames of a data set; alone it is what a stage made."""
    return file.match(_ADDED_LABELS) and (file.parent / "info.json").exists()


def hash_values(values: Any) -> str:
    """Return the first 16 digits of the SHA-256 of plain values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def library_hash() -> str:
    """Return the first 16 digits of the SHA-256 of this library's source."""
    files = sorted(Path(pi0.__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def flatten(values: Mapping[str, Any], prefix: str = "", *, into_lists: bool = False) -> dict[str, Any]:
    """Return nested values by dotted keys; an empty section is left out.

    `into_lists`: the entries of a list of mappings are sections too, with their numbers as keys.
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if into_lists and isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value):
            value = {str(number): entry for number, entry in enumerate(value)}
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.", into_lists=into_lists)
        else:
            flat[name] = value
    return flat


def plain(settings: Any) -> dict[str, Any]:
    """Return settings, a dataclass or a mapping, as they look when they are read back from JSON."""
    values = asdict(settings) if is_dataclass(settings) else dict(settings)  # pyright: ignore[reportArgumentType]
    return json.loads(json.dumps(values))

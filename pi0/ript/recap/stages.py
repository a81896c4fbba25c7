"""Stages of a run: each makes one artefact from others, once, and says what it was made from.

A stage is complete when its directory and its entry in recap_state.json are there. Started again with the
same inputs and settings it is skipped, an interrupted one goes on, and one whose inputs, settings or files
have changed is refused, or made again on request.
"""

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pi0
from pi0.ript.distributed import World
from pi0.ript.files import (
    FORMAT,
    flatten,
    hash_files,
    library_hash,
    read_versioned_json,
    unused_path,
    write_json,
)

STATE = "recap_state.json"
DATASET = "dataset"
"""The LeRobotDataset in the directory of a stage that records."""

_KEY = "stage.json"  # in an unfinished directory: what it is being made from


class StaleStageError(RuntimeError):
    """An artefact is not what the present configuration would make."""


@dataclass(frozen=True)
class Artefact:
    """What a stage made."""

    stage: str
    path: Path
    hash: str
    """SHA-256 of its files."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """What the stage found out: plain JSON values."""


class Stages:
    """The stages of the run in one directory. All processes call `run` at the same points."""

    def __init__(
        self, run_dir: Path, world: World | None = None, on_stale: Literal["refuse", "redo"] = "refuse"
    ) -> None:
        self.run_dir, self.world, self.on_stale = run_dir, world or World(), on_stale
        self._code = self.world.on_main(code_version)
        self.num_made = 0
        """How many stages this process has made, and not found."""
        self.names: list[str] = []
        """The stages that it has returned: others in the directory may be of another configuration."""

    def run(
        self,
        name: str,
        make: Callable[[Path], Mapping[str, Any]],
        *,
        settings: Mapping[str, Any],
        inputs: Mapping[str, Artefact],
    ) -> Artefact:
        """Return the stage's artefact, after making it if it is not there.

        Args:
            name: Of the stage, and of its directory in that of the run.
            make: Is given a directory, empty or with what an interrupted attempt left; fills it and returns
                figures for the record. Its result is a function of settings and inputs.
            settings: All that it depends on, as plain JSON values.
            inputs: Artefacts that it reads.

        Raises:
            StaleStageError: A finished artefact is stale, and `on_stale` is "refuse".
        """
        made_from = {
            "settings": json.loads(json.dumps(dict(settings))),
            "inputs": {role: {"stage": a.stage, "hash": a.hash} for role, a in inputs.items()},
        }
        self.names.append(name)
        found = self.world.on_main(self._finished, name, made_from)
        if found is not None:
            self.world.print(f"{name}: up to date, skipped")
            return found
        work = self.world.on_main(self._begin, name, made_from)
        start = time.monotonic()
        figures = dict(make(work))
        self.world.gather([])  # nobody is in the directory any more
        seconds = round(time.monotonic() - start, 1)
        self.num_made += 1
        made = self.world.on_main(self._finish, name, work, made_from, figures, seconds)
        self.world.print(f"{name}: done in {seconds:.0f} s")
        return made

    def figures(self) -> dict[str, dict[str, Any]]:
        """Return what the stages so far found out, by name."""
        return {name: record["figures"] for name, record in self._state()["stages"].items()}

    def recorded_settings(self, name: str) -> Mapping[str, Any] | None:
        """Return the settings that a stage was made with, None if it has never been finished."""
        return self._state()["stages"].get(name, {}).get("settings")

    def is_new(self, name: str) -> bool:
        """Return whether a stage has never been finished."""
        return name not in self._state()["stages"]

    def _finished(self, name: str, made_from: Mapping[str, Any]) -> Artefact | None:
        path, record = self.run_dir / name, self._state()["stages"].get(name)
        if record is None:
            if path.exists():
                raise StaleStageError(f"{path} is there, but {STATE} does not know it; move it away")
            return None
        work = self._work(name)
        if not path.exists() and work.exists() and hash_files(work) == record["output"]["hash"]:
            work.rename(path)  # the run ended between these two
        if not path.exists():
            return None
        problems = differences(record, made_from)
        if not problems and hash_files(path) != record["output"]["hash"]:
            problems = ["its files have been changed since it was made"]
        if not problems:
            return Artefact(name, path, record["output"]["hash"], record["figures"])
        reasons = "".join(f"\n  - {problem}" for problem in problems)
        if self.on_stale == "refuse":
            raise StaleStageError(
                f"{path} was made from something else than what the configuration says now:{reasons}\n"
                "use on_stale=redo to make it again (the old one is kept beside it), another exp_name for a "
                "new run, or the old settings"
            )
        older = unused_path(path)
        path.rename(older)
        print(f"{name}: stale, made again; the old one is now {older.name}{reasons}")  # noqa: T201
        return None

    def _begin(self, name: str, made_from: Mapping[str, Any]) -> Path:
        work = self._work(name)
        key = work / _KEY
        if work.exists() and (not key.exists() or json.loads(key.read_text()) != made_from):
            shutil.rmtree(work)
        if not work.exists():
            work.mkdir(parents=True)
            write_json(key, made_from)
        return work

    def _finish(
        self, name: str, work: Path, made_from: Mapping[str, Any], figures: dict[str, Any], seconds: float
    ) -> Artefact:
        path = self.run_dir / name
        (work / _KEY).unlink()
        made = Artefact(name, path, hash_files(work), json.loads(json.dumps(figures)))
        record = {
            **made_from,
            "output": {"path": name, "hash": made.hash},
            "figures": made.figures,
            "seconds": seconds,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "code": self._code,
        }
        # First the record: it alone says what the directory is.
        state = self._state()
        state["stages"].pop(name, None)
        state["stages"][name] = record
        write_json(self.run_dir / STATE, {**state, "format": FORMAT})
        work.rename(path)
        return made

    def _work(self, name: str) -> Path:
        return self.run_dir / f"{name}.partial"

    def _state(self) -> dict[str, Any]:
        path = self.run_dir / STATE
        return read_versioned_json(path) if path.exists() else {"stages": {}}


def differences(record: Mapping[str, Any], made_from: Mapping[str, Any]) -> list[str]:
    """Return a line for each setting and input in which a record differs from what is asked for now."""
    old, new = flatten(record["settings"]), flatten(made_from["settings"])
    lines = [
        f"{key}: made with {old.get(key)!r}, now {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    theirs, ours = record["inputs"], made_from["inputs"]
    for role in sorted(theirs.keys() | ours.keys()):
        if theirs.get(role) != ours.get(role):
            lines.append(f"input {role}: made from {_short(theirs.get(role))}, now {_short(ours.get(role))}")
    return lines


def code_version() -> dict[str, str]:
    """Return the hash of the library's source, and the commit where there is a repository."""
    root = Path(pi0.__file__).parent
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return {"source": library_hash(), **({"commit": found.stdout.strip()} if found.returncode == 0 else {})}


def _short(reference: Mapping[str, str] | None) -> str:
    return f"{reference['stage']} {reference['hash'][:12]}" if reference else "nothing"

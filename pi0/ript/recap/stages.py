"""Stages of a run: each makes one artefact from others, once, and says what it was made from.

A stage is complete when its directory and its entry in recap_state.json are there. Started again with the
same inputs and settings it is skipped, an interrupted one goes on, and one whose inputs, settings or files
have changed is refused, or made again on request.
"""

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import pi0
from pi0.ript.checkpoint.resuming import present_names
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
from pi0.ript.progress import doing
from pi0.ript.recap.config import OnStale
from pi0.ript.recap.snapshot_plan import remove_snapshots

STATE = "recap_state.json"

DATASET = "dataset"
"""The LeRobotDataset in the directory of a stage that records."""

_KEY = "stage.json"  # in an unfinished directory: what it is being made from


class StaleStageError(RuntimeError):
    """An artefact is not what the present configuration would make."""


class Kind(StrEnum):
    """What a stage makes."""

    DEMONSTRATIONS = "demonstrations"
    ROLLOUTS = "rollouts"
    VALUE = "value"
    ADVANTAGES = "advantages"
    POLICY = "policy"
    EVALUATION = "evaluation"
    VALIDATION = "validation"


_BEFORE_ROUNDS = {
    Kind.POLICY: "sft",
    Kind.EVALUATION: "sft-evaluation",
    Kind.VALIDATION: "sft-validation",
}


@dataclass(frozen=True)
class StageName:
    """Which stage it is; as text, the name of its directory in that of the run."""

    kind: Kind
    round: int = 0
    """0: of no round."""
    rival: str = ""
    """What a policy that RECAP's are compared with is called; empty: it is none."""
    guidance: float | None = None
    """With which the policy is tried, if another than its own."""

    def __str__(self) -> str:
        name = str(self.kind) if self.round or self.rival else _BEFORE_ROUNDS.get(self.kind, str(self.kind))
        tried = "" if self.guidance is None else f"-guidance-{self.guidance:g}"
        rival = f"baseline-{self.rival}/" if self.rival else ""
        return f"{rival}{f'round-{self.round}/' if self.round else ''}{name}{tried}"


@dataclass(frozen=True)
class Artefact:
    """What a stage made."""

    stage: StageName
    path: Path
    hash: str
    """SHA-256 of its files."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """What the stage found out: plain JSON values."""

    @property
    def kind(self) -> Kind:
        """Return what it is."""
        return self.stage.kind

    @property
    def round(self) -> int:
        """Return the round that made it; 0: none did."""
        return self.stage.round

    @property
    def label(self) -> str:
        """Return what tables call a policy: SFT, or its round."""
        name = f"round {self.round}" if self.round else "SFT"
        return f"{self.stage.rival}, {name}" if self.stage.rival else name


Inputs = Mapping[str, Artefact]
"""What a stage reads, by role."""


class Stages:
    """The stages of the run in one directory. All processes call `run` at the same points."""

    def __init__(self, run_dir: Path, world: World | None = None, on_stale: OnStale = "refuse") -> None:
        self.run_dir, self.world, self.on_stale = run_dir, world or World(), on_stale
        self._code = self.world.on_main(code_version)
        self.num_made = 0
        """How many stages this process has made itself."""
        self.names: list[str] = []
        """The stages that it has returned: others in the directory may be of another configuration."""

    def run[Recipe](
        self,
        name: StageName,
        recipe: Recipe,
        inputs: Inputs,
        make: Callable[[Recipe, Inputs, Path], Mapping[str, Any]],
    ) -> Artefact:
        """Return the stage's artefact, after making it if it is not there.

        Args:
            name: Which stage it is.
            recipe: A dataclass of all settings that it depends on: it and its record are made from them.
                A field with the metadata {"result": "same"} changes no result, and is not in the record; one
                with {"absent": VALUE} had that value in records that do not know it.
            inputs: Artefacts that it reads, by role.
            make: Is given a directory, empty or with what an interrupted attempt left; fills it and returns
                figures for the record. Its result is a function of recipe and inputs.

        Raises:
            StaleStageError: A finished artefact is stale, and `on_stale` is "refuse".
        """
        made_from = {
            "settings": recorded(recipe),
            "inputs": {role: {"stage": str(a.stage), "hash": a.hash} for role, a in inputs.items()},
            "format": FORMAT,
        }
        is_repeated = str(name) in self.names
        self.names += [] if is_repeated else [str(name)]
        absent = _absent(recipe)
        finished = self.world.on_main(self._finished, name, made_from, absent)
        if finished is not None:
            if not is_repeated:
                self.world.print(f"{name}: up to date, skipped")
            return finished
        work = self.world.on_main(self._begin, name, made_from, absent)
        start, doing.stage = time.monotonic(), str(name)
        figures = dict(make(recipe, inputs, work))
        self.world.gather([])  # nobody is in the directory any more
        seconds = round(time.monotonic() - start, 1)
        self.num_made, doing.stage = self.num_made + 1, None
        artefact = self.world.on_main(self._finish, name, work, made_from, figures, seconds)
        self.world.print(f"{name}: done in {seconds:.0f} s")
        return artefact

    def figures(self) -> dict[str, dict[str, Any]]:
        """Return what the stages so far found out, by name."""
        return {name: record["figures"] for name, record in self._state()["stages"].items()}

    def has(self, name: str) -> bool:
        """Return whether a stage is finished."""
        return name in self._state()["stages"]

    def record(self, name: str) -> Mapping[str, Any]:
        """Return what is written down of a finished stage: settings, figures, seconds."""
        return self._state()["stages"][name]

    def recorded_settings(self, name: StageName) -> Mapping[str, Any] | None:
        """Return the settings that a stage was made with, None if it has never been finished."""
        return self._state()["stages"].get(str(name), {}).get("settings")

    def _finished(
        self, name: StageName, made_from: Mapping[str, Any], absent: Mapping[str, Any]
    ) -> Artefact | None:
        path, record = self.run_dir / str(name), self._state()["stages"].get(str(name))
        if record is None:
            if path.exists():
                raise StaleStageError(f"{path} is there, but {STATE} does not know it; move it away")
            return None
        work = self._work(name)
        if not path.exists() and work.exists() and hash_files(work) == record["output"]["hash"]:
            work.rename(path)  # the run ended between these two
        if not path.exists():
            return None
        problems = differences(record, made_from, absent)
        if not problems and hash_files(path) != record["output"]["hash"]:
            problems = ["its files have been changed since it was made"]
        if not problems:
            return Artefact(name, path, record["output"]["hash"], record["figures"])
        self._move_away(path, problems)
        return None

    def _move_away(self, path: Path, problems: Sequence[str]) -> None:
        """Keep a stale directory under another name, if it may be made again."""
        reasons = "".join(f"\n  - {problem}" for problem in problems)
        if self.on_stale == "refuse":
            raise StaleStageError(
                f"{path} was made from something else than what the configuration says now:{reasons}\n"
                "use on_stale=redo to make it again (the old one is kept beside it), another exp_name for a "
                "new run, or the old settings"
            )
        older = unused_path(path)
        path.rename(older)
        print(f"{path}: stale, made again; the old one is now {older.name}{reasons}")  # noqa: T201

    def _begin(self, name: StageName, made_from: Mapping[str, Any], absent: Mapping[str, Any]) -> Path:
        work = self._work(name)
        key = work / _KEY
        if work.exists() and not key.exists():  # killed before anything was made
            shutil.rmtree(work)
        if work.exists() and (problems := differences(read_versioned_json(key), made_from, absent)):
            self._move_away(work, problems)
        if not work.exists():
            work.mkdir(parents=True)
            write_json(key, made_from)
        return work

    def _finish(
        self,
        name: StageName,
        work: Path,
        made_from: Mapping[str, Any],
        figures: dict[str, Any],
        seconds: float,
    ) -> Artefact:
        path = self.run_dir / str(name)
        (work / _KEY).unlink()
        remove_snapshots(work)  # not before: a value function is judged after its training
        artefact = Artefact(name, path, hash_files(work), json.loads(json.dumps(figures)))
        record = {
            **made_from,
            "output": {"path": str(name), "hash": artefact.hash},
            "figures": artefact.figures,
            "seconds": seconds,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "code": self._code,
        }
        # First the record: it alone says what the directory is.
        state = self._state()
        state["stages"].pop(str(name), None)
        state["stages"][str(name)] = record
        write_json(self.run_dir / STATE, {**state, "format": FORMAT})
        work.rename(path)
        return artefact

    def _work(self, name: StageName) -> Path:
        return self.run_dir / f"{name}.partial"

    def _state(self) -> dict[str, Any]:
        path = self.run_dir / STATE
        return read_versioned_json(path) if path.exists() else {"stages": {}}


def recorded(recipe: Any) -> dict[str, Any]:
    """Return the settings of a stage as plain JSON values, without those that change no result."""
    kept = [f.name for f in fields(recipe) if f.metadata.get("result") != "same"]
    values = {name: getattr(recipe, name) for name in kept}
    values = {name: recorded(value) if is_dataclass(value) else value for name, value in values.items()}
    return json.loads(json.dumps(values))


def _absent(recipe: Any) -> dict[str, Any]:
    return {f.name: f.metadata["absent"] for f in fields(recipe) if "absent" in f.metadata}


def differences(
    record: Mapping[str, Any], made_from: Mapping[str, Any], absent: Mapping[str, Any] | None = None
) -> list[str]:
    """Return a line for each setting and input in which a record differs from what is asked for now.

    A setting that a record of an earlier version does not have at all had the value in `absent`; if it is not
    there either, it is not compared.
    """
    settings, record = made_from["settings"], {**record, "settings": {**(absent or {}), **record["settings"]}}
    if record.get("format", 0) < made_from["format"]:
        settings = {name: value for name, value in settings.items() if name in record["settings"]}
    before, now = present_names(flatten(record["settings"])), flatten(settings)
    lines = [
        f"{key}: made with {before.get(key)!r}, now {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    read, reads = record["inputs"], made_from["inputs"]
    for role in sorted(read.keys() | reads.keys()):
        if read.get(role) != reads.get(role):
            lines.append(f"input {role}: made from {_short(read.get(role))}, now {_short(reads.get(role))}")
    return lines


def code_version() -> dict[str, str]:
    """Return the hash of the library's source, and the commit where there is a repository."""
    root = Path(pi0.__file__).parent
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    git = subprocess.run(command, capture_output=True, text=True, check=False)
    commit = {"commit": git.stdout.strip()} if git.returncode == 0 else {}
    return {"source": library_hash(), **commit}


def _short(reference: Mapping[str, str] | None) -> str:
    return f"{reference['stage']} {reference['hash'][:12]}" if reference else "nothing"

"""Cells of a comparison: one small JSON file for what a method had made after a round, found by its name.

A cell is a function of settings and seeds, but for `measured`: CPU seconds, and which code it was.
"""

import hashlib
import json
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pi0.ript.evaluate import EpisodeResult, Evaluation
from pi0.ript.files import flatten, library_hash, plain, write_json, write_text
from pi0.ript.recap import RecapConfig

SETTINGS = "settings.json"
_NO_SETTINGS = {
    *("output_dir", "exp_name", "seed", "device", "on_stale", "save_minutes", "cache_gib", "baselines"),
    "filtered_rounds",
    *("logging", "distributed", "max_nonfinite_steps", "algorithm"),
}
"""What the cells do not depend on, or say in their names."""


class OtherCellsError(ValueError):
    """The cells that are there cannot be compared with those that would be added."""


@dataclass(frozen=True)
class Cell:
    """Which cell it is."""

    seed: int
    run: int = 0
    method: str = ""
    """Empty: what all methods start from."""
    round: int = 0
    """0: the one that was chosen on validation states."""

    @property
    def file(self) -> str:
        """Return the name of its file."""
        if not self.method:
            return f"seed{self.seed}-start.json"
        part = f"round{self.round}" if self.round else "chosen"
        return f"seed{self.seed}-run{self.run}-{self.method}-{part}.json"


class Cells:
    """The cells of a task, in a directory."""

    def __init__(self, directory: Path, *, commits: bool = False) -> None:
        self.directory, self.commits = directory, commits
        directory.mkdir(parents=True, exist_ok=True)

    def has(self, cell: Cell) -> bool:
        """Return whether a cell is finished."""
        return (self.directory / cell.file).exists()

    def read(self, cell: Cell) -> dict[str, Any]:
        """Return what a cell says."""
        return json.loads((self.directory / cell.file).read_text())

    def write(self, cell: Cell, content: Mapping[str, Any], cpu_s: Mapping[str, float]) -> None:
        """Write a cell, and commit it if that was asked for; one that says the same already stays."""
        if self.has(cell):
            before = {k: v for k, v in self.read(cell).items() if k != "measured"}
            if before == plain({**asdict(cell), **content}):
                return
            print(f"{cell.file}: differs from what was there (another machine or version); written anew")
        values = {**asdict(cell), **content, "measured": {"cpu_s": dict(cpu_s), **_code()}}
        # A line for each key: the lists of episodes stay on theirs.
        lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in values.items()]
        write_text(self.directory / cell.file, "{\n" + ",\n".join(lines) + "\n}\n")
        self._keep(cell.file, f"Result: {self.directory.name}, {cell.file.removesuffix('.json')}")

    def require_settings(self, config: RecapConfig, more: Mapping[str, Any]) -> None:
        """Write the settings of all cells of the task, or raise if those that are there had others."""
        values = {k: v for k, v in plain(config).items() if k not in _NO_SETTINGS}
        now = plain(flatten({**values, **more}))
        path = self.directory / SETTINGS
        if not path.exists():
            write_json(path, now)
            self._keep(SETTINGS, f"Settings of the comparison {self.directory.name}")
        before = json.loads(path.read_text())
        changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
        if changed:
            lines = [f"{key}: made with {before.get(key)!r}, now {now.get(key)!r}" for key in changed]
            raise OtherCellsError(
                f"{self.directory}: its cells are of other settings:\n  "
                + "\n  ".join(lines)
                + "\nuse those, or another --results"
            )

    def require_start(self, seed: int, policy: str) -> None:
        """Raise if cells of a seed started from another SFT policy than the one that was made here."""
        start = Cell(seed)
        if self.has(start) and self.read(start)["policy"] != policy:
            raise OtherCellsError(
                f"{self.directory / start.file}: the cells of seed {seed} start from SFT policy "
                f"{self.read(start)['policy']}, this machine makes {policy}; finish the seed where it began, "
                f"or remove its files (seed{seed}-*) to make them all here"
            )

    def _keep(self, name: str, message: str) -> None:
        if self.commits:
            git = ["git", "-C", str(self.directory)]
            subprocess.run([*git, "add", "--", name], check=True)
            subprocess.run([*git, "commit", "--quiet", "-m", message, "--only", "--", name], check=True)


def to_plain(evaluation: Evaluation, hz: Mapping[str, float]) -> dict[str, Any]:
    """Return an evaluation as few plain values, with the policy steps per simulated second of its tasks."""
    tasks = {}
    for task, part in evaluation.by_task().items():
        states = hashlib.sha256("".join(e.state for e in part.episodes).encode()).hexdigest()[:16]
        tasks[task] = {
            "states": states,
            "hz": hz[task],
            "success": "".join(str(int(e.success)) for e in part.episodes),
            "steps": [e.num_steps for e in part.episodes],
        }
    counts = {"num_successes": evaluation.num_successes, "num_episodes": evaluation.num_episodes}
    return {**counts, "tasks": tasks}


def from_plain(values: Mapping[str, Any]) -> Evaluation:
    """Return the evaluation of a cell; its states are named by the hash of all of them and by number."""
    episodes = [
        EpisodeResult(task, f"{part['states']}-{number}", success == "1", steps)
        for task, part in values["tasks"].items()
        for number, (success, steps) in enumerate(zip(part["success"], part["steps"], strict=True))
    ]
    return Evaluation(0, tuple(episodes))


def successes_per_minute(values: Mapping[str, Any]) -> float:
    """Return the successes of a cell's evaluation per simulated minute of all its episodes."""
    seconds = sum(sum(part["steps"]) / part["hz"] for part in values["tasks"].values())
    return 60 * values["num_successes"] / seconds


def _code() -> dict[str, str]:
    """Return the commit of the code, and the hash of the library's source, which may be newer."""
    root = Path(__file__).parent.parent
    code = ["pi0", "train_ript_pi0_final.py", ":(glob)benchmarks/*.py"]
    command = ["git", "-C", str(root), "log", "-1", "--format=%H", "--", *code]
    git = subprocess.run(command, capture_output=True, text=True, check=False)
    commit = {"commit": git.stdout.strip()[:12]} if git.returncode == 0 else {}
    return {**commit, "source": library_hash()}

"""Published weights on LIBERO's four suites with one command: a stand-in directory, two chunks an episode."""

import contextlib
import json
import re
import sys
from io import StringIO
from pathlib import Path

from memory_peak import Peak
from stand_in import write_published

from pi0 import Pi0Config
from pi0.ript.commands.evaluate import main
from pi0.ript.environments import FOUR_SUITES
from pi0.ript.envs import make_suite

CHUNK = 10
"""Actions of a chunk that are executed, as with lerobot/pi0_libero_finetuned."""


def prepare(place: Path, config: Pi0Config, weights: Path | None = None) -> None:
    """Write the directory, unless it is there; it reads what the suites say. `weights`: a file of its own."""
    if not place.exists():
        texts = [
            task.instruction for suite in FOUR_SUITES for task in make_suite("libero", suite=suite).tasks()
        ]
        write_published(place, config, texts, weights)


def figures(place: Path) -> dict[str, float]:
    """Evaluate one episode of one task of each suite; return what that took and what is missing of it."""
    peak, said, output = Peak(), StringIO(), place.with_name("published-eval")
    words = [f"--policy={place}", "--suites", "all", "--episodes=1", "--tasks", "0", "--videos=0"]
    words += ["--device=cpu", "--num-workers=0", f"--n-action-steps={CHUNK}", f"--output={output}"]
    words += ["--env-option", f"max_episode_length={2 * CHUNK}", "--env-option", "num_parallel_envs=1"]
    with contextlib.redirect_stdout(said):
        code = main(words)
    sys.stderr.write(said.getvalue())
    record = json.loads((output / "suites.json").read_text())["policy"] if code == 0 else {}
    episodes = sum(row["num_episodes"] for row in record.values())
    plan = r"plan: memory of a process: weights ([\d.]+) GB, simulators up to about ([\d.]+) GB"
    told = sum(map(float, re.findall(plan, said.getvalue())[0])) * 1e9 / 2**30
    most = peak.gib(whole=True)
    return {
        "exit code": code,
        "suites missing": len(FOUR_SUITES) - len(record),
        "episodes missing": len(FOUR_SUITES) - episodes,
        "memory in the plan, GiB": told,
        "most memory, GiB": most,
        "most memory by the plan's": most / told,
    }

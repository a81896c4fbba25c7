"""Runs RECAP's script in this process at toy size: whole and again, or with kills and stops.

    python tests/recap_runs.py DIRECTORY whole|interrupted

In a process of its own, without the checks of shapes that the other tests run under, which double the time.
Writes DIRECTORY/whole.json or DIRECTORY/interrupted.json.
"""

import contextlib
import io
import json
import runpy
import sys
from pathlib import Path
from unittest import mock

from pi0.ript import interruption, recording
from pi0.ript.interruption import StoppedError
from pi0.ript.recap import RecapConfig, report
from pi0.ript.recap.stages import STATE, Stages

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "train_ript_pi0_final.py"
DEMO = ROOT / "configs/demo.yaml"
SHRUNK = [
    *("task.max_episode_length=30", "task.num_workers=0", "task.num_parallel_envs=2", "task.image_size=32"),
    *("demonstrations.episodes=2", "demonstrations.num_workers=0", "demonstrations.quality.hesitation=0"),
    *("sft.steps=6", "sft.batch_size=8", "value.pretraining.steps=3", "value.finetuning.steps=3"),
    *("value.pretraining.batch_size=8", "value.finetuning.batch_size=8", "value.width=16"),
    *("rollouts.num_states=2", "rollouts.per_state=2", "rollouts.pool_size=6", "rollouts.keep_rounds=2"),
    "rounds=2",
    *("finetuning.training.steps=4", "finetuning.training.batch_size=8"),
    *("gates.min_concordance=0", "gates.max_fraction_error=1"),
    *("validation.rollouts_per_task=2", "eval.rollouts_per_task=2", "eval.n_video=1", "baselines=true"),
    *("validation.guidances=[1]", "filtered_rounds=2"),
]
REQUIREMENT = [
    *("advantage.positive_fraction=0.3", "advantage.ranked=rollouts", "demonstrations.advantage=use"),
    "finetuning.objective=indicator",
]
"""Requirement 004's own form, which OpenTau's is too."""


def run(directory: Path, *overrides: str) -> dict:
    """Run the script and return the record of its stages."""
    arguments = [f"--config_path={DEMO}", f"output_dir={directory}", *SHRUNK, *overrides]
    with mock.patch.object(sys, "argv", [str(SCRIPT), *arguments]):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return json.loads((directory / "demo" / STATE).read_text())["stages"]


def hashes(stages: dict) -> dict[str, str]:
    return {name: record["output"]["hash"] for name, record in stages.items()}


@contextlib.contextmanager
def recipes_alone():
    """Let a stage, while it is made, see nothing of the configuration but its recipe."""
    begin, finish, making = Stages._begin, Stages._finish, []

    def begun(self, name, *args):
        making.append(str(name))
        return begin(self, name, *args)

    def finished(self, *args):
        making.pop()
        return finish(self, *args)

    def guarded(self, attribute):
        if making and not attribute.startswith("__"):
            raise AssertionError(f"{making[-1]} depends on {attribute} besides its recipe")
        return object.__getattribute__(self, attribute)

    with (
        mock.patch.object(Stages, "_begin", begun),
        mock.patch.object(Stages, "_finish", finished),
        mock.patch.object(RecapConfig, "__getattribute__", guarded),
    ):
        yield


def killed(directory: Path) -> tuple[dict, int]:
    """Die at the end of stages: in turn before the stage is recorded and after, or not at all."""
    finish, count, deaths = Stages._finish, 0, 0

    def fatal(self, name, *args):
        nonlocal count
        count += 1
        if count % 4 == 1:
            raise KeyboardInterrupt
        made = finish(self, name, *args)
        if count % 2:
            raise KeyboardInterrupt
        return made

    with mock.patch.object(Stages, "_finish", fatal):
        while True:
            try:
                return run(directory), deaths
            except KeyboardInterrupt:
                deaths += 1


def stopped(directory: Path, every: int) -> tuple[dict, int]:
    """Be asked to stop at every so many optimizer steps and chunks of actions."""
    calls, stops, is_asked = 0, 0, False

    def stop_requested() -> int:
        nonlocal calls, is_asked
        calls += 1
        is_asked = is_asked or calls % every == 0
        return 143 if is_asked else 0

    with (
        mock.patch.object(interruption, "stop_requested", stop_requested),
        mock.patch.object(recording, "stop_requested", stop_requested),
    ):
        while True:
            try:
                return run(directory), stops
            except StoppedError:
                stops, is_asked = stops + 1, False


def uninterrupted(place: Path) -> dict:
    """Run twice: the second time there is nothing to do."""
    with recipes_alone():
        whole = run(place / "whole")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        again = run(place / "whole")
    return {"whole": whole, "again": again, "skipped": said.getvalue().count("up to date, skipped")}


def interrupted(place: Path) -> dict:
    """Run until the end in spite of kills, and in spite of stops."""
    with mock.patch.object(report, "write_recap_report"):  # takes seconds, and is not an artefact
        after_kills, deaths = killed(place / "killed")
        after_stops, stops = stopped(place / "stopped", every=11)
    return {
        **{"killed": hashes(after_kills), "deaths": deaths},
        **{"stopped": hashes(after_stops), "stops": stops},
    }


if __name__ == "__main__":
    directory, which = Path(sys.argv[1]), sys.argv[2]
    outcome = {"whole": uninterrupted, "interrupted": interrupted}[which](directory)
    (directory / f"{which}.json").write_text(json.dumps(outcome))

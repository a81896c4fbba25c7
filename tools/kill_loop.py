"""Kills a run at random moments, starts the same command again, and compares the end with an undisturbed run.

    python tools/kill_loop.py --script 13 --kills 20 --seed 0
    python tools/kill_loop.py --script final --kills 20 --seed 0 --nproc 2 --every-phase

Scripts: 13 (RIPT, rung 13 with --resume), final (RECAP), train (pi0-train of a policy that is judged in
simulation), eval (pi0-eval). All are toys of tools/pins.py on Meta-World, with a process of its own for
simulators. A kill is SIGKILL for all processes (the machine is gone), for the main process alone, for the
process that a pi0-* command looks after, or, under torchrun, for the launcher or one rank; what is left must
end by itself. A run that ended before its kill is
compared, and the next one begins, until there were exactly so many kills; with --every-phase the loop goes on
until a kill has fallen into each phase.

Equal are, bit for bit, what tools/pins.py pins: all weights, data sets, metrics and results. The exit code is
1 where something differs, a process stays, or a run that nobody killed ends with an error.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from pins import RECAP, RIPT, ROOT, TRAIN, Machine, demos, pins, ript
from process_tree import Frame, ProcessTree

_WORKERS = "task.num_workers=1"
_GONE_S = 60.0
"""How long what is left of a run may take to end."""
_DELAY_S = 0.3
"""Most that a kill waits once its phase has begun."""

_MOST_IN_VAIN = 10

# What is killed ---------------------------------------------------------------------------------------------


def _ript(machine: Machine, place: Path) -> list[str]:
    settings = [word for word in RIPT if not word.startswith("task.num_workers")]
    settings.append("algo.data_batch_size=2")  # a group for each of two processes
    outputs = [f"--output_dir={place}", f"--warm_start_dir={place / 'cache'}", "--exp_name=run", "--resume"]
    return ["13_train_production_ready.py", *settings, _WORKERS, *outputs]


def _recap(machine: Machine, place: Path) -> list[str]:
    settings = [word for word in RECAP if not word.startswith("task.num_workers")]
    return ["train_ript_pi0_final.py", *settings, _WORKERS, f"output_dir={place}", "exp_name=run"]


def _train(machine: Machine, place: Path) -> list[str]:
    task = ["env.type=metaworld", "env.task=button-press-v3", "env.episode_length=60", "env.image_size=32"]
    judged = ["eval_freq=3", "eval.n_episodes=2", "eval.num_workers=1", "eval.max_episodes_rendered=0"]
    what = ["policy.advantage=on", "ema_decay=0.9", f"output_dir={place}"]
    config = machine.config("sft_pi0_config.json", "demos")
    return machine.command_words("pi0-train", config, *TRAIN, *task, *judged, *what)


def _eval(machine: Machine, place: Path) -> list[str]:
    what = [f"--policy={machine.directory / 'ript/run/policy'}", "--env=metaworld", "--episodes=12"]
    more = [f"--output={place}", "--videos=2", "--num-workers=1", "--device=cpu"]
    return machine.command_words("pi0-eval", *what, *more)


@dataclass(frozen=True)
class Script:
    """A command, what it needs to be there, and its phases."""

    words: Callable[[Machine, Path], list[str]]
    phases: tuple[str, ...]
    needs: Callable[[Machine, Path], None] | None = None
    needs_name: str = ""


SCRIPTS = {
    "13": Script(_ript, ("start", "rollouts", "update", "evaluation", "save", "report")),
    "final": Script(_recap, ("start", "rollouts", "update", "labels", "evaluation", "save", "report")),
    "train": Script(_train, ("start", "update", "evaluation", "save"), demos, "demos"),
    "eval": Script(_eval, ("start", "evaluation", "save"), ript, "ript"),
}
PHASES: tuple[tuple[str, str, str], ...] = (
    ("save", "checkpoint/files.py checkpoint/snapshot.py checkpoint/journal.py saving.py results.py", ""),
    ("save", "checkpoint/resumable.py checkpoint/state.py", "save _write write save_checkpoint"),
    ("save", "recap/stages.py", "_finish _begin"),
    ("report", "report.py report_plots.py recap/report.py page.py pages/success_figures.py", ""),
    ("evaluation", "evaluate.py recap/judging.py recap/validation.py kept_evaluation.py", ""),
    ("rollouts", "groups.py recording.py demonstrations/collect.py", ""),
    ("labels", "recap/gates.py", ""),
    ("labels", "labels/labelling.py labels/advantages.py labels/concordance.py", ""),
    ("update", "monitoring.py training/steps.py supervised/trainer.py distributed.py windows.py", ""),
)
"""A phase, files (as paths end), and functions (none: all); the first line that any frame fits counts."""


def phase_of(stack: list[Frame]) -> tuple[str, str]:
    """Return the phase that a stack is in, and the frame that says so."""
    for phase, files, functions in PHASES:
        for file, function in stack:
            is_file = "/pi0/" in file and any(file.endswith(f"/{name}") for name in files.split())
            if is_file and function != "<module>" and (not functions or function in functions.split()):
                return phase, f"{file.split('/pi0/')[-1]}:{function}"
    own = [(file, function) for file, function in stack if "/pi0/" in file and function != "<module>"]
    return "start", f"{own[0][0].split('/pi0/')[-1]}:{own[0][1]}" if own else ""


# The loop ---------------------------------------------------------------------------------------------------


@dataclass
class Loop:
    """A run that is killed again and again."""

    script: Script
    machine: Machine
    num_processes: int
    draws: random.Random
    kills: list[dict] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    expected: dict[str, str] = field(default_factory=dict)
    duration_s: float = 0.0

    def prepare(self) -> None:
        """Make what the command needs, and the undisturbed run."""
        if self.script.needs:
            self.script.needs(self.machine, self.machine.directory / self.script.needs_name)
        begun, place = time.monotonic(), self.machine.directory / "undisturbed"
        tree = self.start(place)
        tree.wait(3600.0)
        self.duration_s = time.monotonic() - begun
        if tree.root.returncode:
            sys.stderr.write(self.log.read_text()[-5000:])
            raise SystemExit(
                f"kill_loop: error: exit code {tree.root.returncode} of the undisturbed run, see above"
            )
        self.expected = pins(place)
        print(f"undisturbed: {self.duration_s:.0f} s, {len(self.expected)} artefacts", flush=True)

    @property
    def log(self) -> Path:
        """What all runs said."""
        return self.machine.directory / "output.txt"

    def start(self, place: Path) -> ProcessTree:
        """Start the command, always the same."""
        count = str(self.num_processes)
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
        words = self.script.words(self.machine, place)
        if self.num_processes > 1 and words[0] == "-c":
            program = self.machine.directory / "program.py"
            program.write_text(words[1] + "\n")
            words = [str(program), *words[2:]]
        words = [sys.executable, *(launcher if self.num_processes > 1 else []), *words]
        return ProcessTree(words, self.machine.checkout, self.machine.environment(), self.log)

    def run(self, num_kills: int, every_phase: bool) -> None:
        """Kill so many times, and let the last run end."""
        number, in_vain = 0, 0
        while not self.problems:
            place, before = self.machine.directory / f"run-{number}", len(self.kills)
            is_over = self._run_to_its_end(place, num_kills, every_phase)
            self._compare(place)
            if is_over:
                return
            shutil.rmtree(place)
            number, in_vain = number + 1, 0 if len(self.kills) > before else in_vain + 1
            if in_vain == _MOST_IN_VAIN:
                never = f", which never fell into {', '.join(self._missing())}" if every_phase else ""
                self.problems.append(f"{in_vain} runs one after the other ended before their kill{never}")

    def _run_to_its_end(self, place: Path, num_kills: int, every_phase: bool) -> bool:
        """Start a run until it ends; return whether all kills have fallen."""
        while True:
            missing = self._missing() if every_phase else []
            is_over = len(self.kills) >= num_kills and not missing
            aim = missing[0] if len(self.kills) >= num_kills and missing else None
            tree = self.start(place)
            is_killed = not is_over and self._kill(tree, aim)
            if not tree.wait(_GONE_S if is_killed else 3600.0):
                left = ", ".join(f"{x.pid} {' '.join(x.cmdline()[:4])}" for x in tree.members())
                self.problems.append(f"processes that stay: {left}")
                tree.kill(tree.members())
                return True
            if not is_killed and tree.root.returncode:
                self.problems.append(
                    f"exit code {tree.root.returncode} of a run that nobody killed: {self.log}"
                )
            if not is_killed:
                return is_over

    def _missing(self) -> list[str]:
        return [x for x in self.script.phases if x not in {kill["phase"] for kill in self.kills}]

    def _kill(self, tree: ProcessTree, aim: str | None) -> bool:
        """Kill a run at a random moment, or in a phase; return False where it ended before."""
        begun = time.monotonic()
        if aim is None:
            ended = tree.wait(self.draws.uniform(0.0, self.duration_s))
        else:
            # Seldom at first: one that was looked into all the time while it loaded its libraries ended in
            # SIGSEGV (seen once, in a hundred runs).
            ended = aim != "start" and tree.wait(3600.0, also=lambda: self._phase(tree)[0] != "start")
            ended = ended or tree.wait(3600.0, also=lambda: self._phase(tree)[0] == aim, poll_s=0.01)
        if ended:
            return False
        phase, frame = self._phase(tree)
        victims, who = self._victims(tree)
        tree.kill(victims)
        after = time.monotonic() - begun
        self.kills.append({"phase": phase, "frame": frame, "victims": who, "seconds": round(after, 1)})
        place = f" ({frame})" if frame else ""
        print(f"kill {len(self.kills)}: {who}, in {phase}{place}, {after:.1f} s after the start", flush=True)
        return True

    def _phase(self, tree: ProcessTree) -> tuple[str, str]:
        try:
            return phase_of(tree.stack(tree.ranks()[0]))
        except psutil.NoSuchProcess:
            return "start", ""

    def _victims(self, tree: ProcessTree) -> tuple[list[psutil.Process], str]:
        root = psutil.Process(tree.root.pid)
        kinds = {"all processes": tree.members(), "the main process": [root]}
        if (main := tree.main()) != root:
            kinds = {**kinds, "the process that it looks after": [main]}
        if self.num_processes > 1:
            ranks = tree.ranks()
            number = self.draws.randrange(len(ranks))
            kinds = {
                "all processes": tree.members(),
                "the launcher": [root],
                f"rank {number}": [ranks[number]],
            }
        who = self.draws.choice(list(kinds))
        return kinds[who], who

    def _compare(self, place: Path) -> None:
        if self.problems:
            return
        made = pins(place)
        different = sorted(x for x in self.expected | made if self.expected.get(x) != made.get(x))
        self.problems += [f"{place.name}/{name}: not that of the undisturbed run" for name in different]
        if not different:
            print(f"{place.name}: all {len(made)} artefacts are those of the undisturbed run", flush=True)


def main() -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--script", choices=SCRIPTS, required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the victims")
    parser.add_argument("--nproc", type=int, default=1, help="processes, by torchrun")
    parser.add_argument("--every-phase", action="store_true", help="go on until each phase was hit")
    parser.add_argument(
        "--work", type=Path, help="an empty directory for the runs, which stay; default: temporary"
    )
    parser.add_argument("--output", type=Path, help="JSON file for the kills")
    options = parser.parse_args()
    if options.kills < 1 or options.nproc < 1:
        parser.error("--kills, --nproc: expected 1 or more")
    if options.work and options.work.exists() and any(options.work.iterdir()):
        parser.error(f"--work: expected an empty directory, {options.work} has files")
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        script, draws = SCRIPTS[options.script], random.Random(options.seed)
        loop = Loop(script, Machine(ROOT, work), options.nproc, draws)
        loop.prepare()
        loop.run(options.kills, options.every_phase)
        if loop.problems:
            sys.stderr.write(loop.log.read_text()[-5000:])
    phases = Counter(kill["phase"] for kill in loop.kills)
    told = ", ".join(f"{name} {phases[name]}" for name in script.phases)
    print(f"{options.script}, seed {options.seed}: {len(loop.kills)} kills: {told}")
    for problem in loop.problems:
        print(f"WRONG: {problem}")
    if options.output:
        result = {"script": options.script, "seed": options.seed, "processes": options.nproc}
        result |= {"kills": loop.kills, "phases": dict(phases), "problems": loop.problems}
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if loop.problems else 0


if __name__ == "__main__":
    sys.exit(main())

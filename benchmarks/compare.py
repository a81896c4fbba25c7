"""Methods of learning from rollouts, compared at equal rollouts and updates: `learning.py --compare`.

Each starts from the same SFT policy and makes its own rollouts. After each round it is judged on the same
held-out states; which round counts, and with which guidance, is chosen on validation states, alike for all.
What is finished is a cell (`compare_cells`) and is not made again. Simulators run in this process, so that
its CPU time is all there is: two seeds on two cores are two commands, each with its --first_seed.
"""

import copy
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from compare_ablation import CHANGES
from compare_cells import Cell, Cells, OtherCellsError, to_plain
from compare_methods import METHODS
from compare_ript import Ript, groups_in
from compare_stages import Method
from compare_table import write_results

from pi0.ript.config import ConfigError, load_config_from_yaml
from pi0.ript.distributed import World
from pi0.ript.evaluation_settings import parse_guidances
from pi0.ript.interruption import setup_signal_handlers
from pi0.ript.recap import RecapConfig
from pi0.ript.recap import rounds as recap
from pi0.ript.recap.endings import exits_with_message
from pi0.ript.recap.gates import GateError
from pi0.ript.recap.judging import (
    choose,
    guidance_on_validation,
    judge,
    judge_as_chosen,
    tried_guidances,
    validations,
)
from pi0.ript.recap.stages import Kind, StageName
from pi0.ript.recap.validation import validate_recap
from pi0.ript.results import RunInUseError, lock_directory
from train_ript_pi0_final import fit

ROOT = Path(__file__).parent.parent
_DEMO, _STATES = "demo.yaml", ["eval.rollouts_per_task=200", "eval.first_state=1000"]
TASKS: dict[str, tuple[str, list[str]]] = {
    "demo": (_DEMO, _STATES),
    "few_successes": (_DEMO, [*_STATES, "task.max_episode_length=42"]),
    "drawer_open": (_DEMO, [*_STATES, "task.task_names=[drawer-open-v3]", "reward.C_neg=-72"]),
    "plate_slide": (_DEMO, [*_STATES, "task.task_names=[plate-slide-v3]", "reward.C_neg=-42"]),
    "three_tasks": ("demo_three_tasks.yaml", ["eval.rollouts_per_task=100", "eval.first_state=1000"]),
    "sloppy": (_DEMO, [*_STATES, "demonstrations.operator=sloppy"]),
    # Two rounds, on states that nothing else is judged on.
    "ablation": (_DEMO, ["eval.rollouts_per_task=200", "eval.first_state=500", "rounds=2"]),
    # The benchmark has 50 states a task. Every method goes on from its round before.
    "libero": ("recap_libero_toy.yaml", ["rounds=2", "finetuning.start_from=previous"]),
}
"""The configuration of each task, and what is changed in it."""

_ALONE = ["task.num_workers=0", "demonstrations.num_workers=0", "eval.n_video=0", "baselines=false",
          "filtered_rounds=0"]  # fmt: skip


def add_arguments(parser: ArgumentParser) -> None:
    """Add what only a comparison has."""
    group = parser.add_argument_group("--compare")
    group.add_argument(
        "--compare", metavar="METHODS", help=f"some of {','.join(METHODS)}; the first beside each"
    )
    group.add_argument(
        "--change", metavar="PARTS", help=f"also RECAP with one part changed, each of {','.join(CHANGES)}"
    )
    group.add_argument(
        "--ablation", action="store_true", help="RECAP, and every change; the task is ablation"
    )
    group.add_argument("--task", choices=TASKS, help="default: demo; with changes: ablation")
    group.add_argument("--first_seed", type=int, default=0)
    group.add_argument("--runs", type=int, default=1, help="of each method and seed, other training draws")
    group.add_argument("--guidance", default="1,2,3", help="to choose from, for methods that have one")
    group.add_argument("--results", type=Path, default=ROOT / "benchmarks/results", help="of the cells")
    group.add_argument(
        "--work", type=Path, default=ROOT / "pi0/ript/output/compare", help="policies and rollouts, large"
    )
    group.add_argument("--commit", action="store_true", help="commit each cell as it ends")


@dataclass(frozen=True)
class Comparison:
    """What one command compares."""

    config: RecapConfig
    methods: Sequence[str]
    guidances: Sequence[float]
    runs: int
    cells: Cells
    work: Path


@exits_with_message()
def compare_methods(options: Namespace, overrides: Sequence[str]) -> None:
    """Make the cells that are missing, then print and write the tables of all that are there."""
    torch.set_num_threads(1)  # a toy model gains nothing from threads
    try:
        comparison = _comparison(options, overrides)
        seeds = range(options.first_seed, options.first_seed + options.seeds)
        comparison.cells.require_settings(
            comparison.config, {"guidances": comparison.guidances, "group_size": Ript.group_size}
        )
        setup_signal_handlers()
        stopped = [line for seed in seeds for line in compare_on_seed(comparison, seed)]
    except (ConfigError, OtherCellsError, RunInUseError) as error:
        sys.exit(f"error: {error}")
    print(write_results(comparison.cells.directory, comparison.methods))
    if stopped:
        sys.exit("\n".join(stopped))


def _comparison(options: Namespace, overrides: Sequence[str]) -> Comparison:
    methods = (options.compare or "recap").split(",")
    if unknown := [name for name in methods if name not in METHODS]:
        raise ConfigError(f"--compare: expected some of {', '.join(METHODS)}, found {unknown[0]!r}")
    parts = options.change.split(",") if options.change else list(CHANGES) if options.ablation else []
    if unknown := [part for part in parts if part not in CHANGES]:
        raise ConfigError(f"--change: expected some of {', '.join(CHANGES)}, found {unknown[0]!r}")
    methods += [f"recap_{part}" for part in parts]
    task = options.task or ("ablation" if parts else "demo")
    file, changes = TASKS[task]
    changes = [*changes, *_ALONE, *overrides]
    config = load_config_from_yaml(ROOT / "configs" / file, changes, schema=RecapConfig)
    validate_recap(config)
    if not config.validation.rollouts_per_task:
        raise ConfigError("validation.rollouts_per_task: expected 1 or more: every method chooses its round")
    groups_in(config)
    try:
        guidances = parse_guidances(options.guidance)
    except ValueError as error:
        raise ConfigError(f"--guidance: {error}") from error
    cells = Cells(options.results / task, commits=options.commit)
    return Comparison(config, methods, guidances, options.runs, cells, options.work / task)


def compare_on_seed(comparison: Comparison, seed: int) -> list[str]:
    """Make the cells of a seed that are missing; return a line for each method that could not go on."""
    missing = [
        (run, name)
        for run in range(comparison.runs)
        for name in comparison.methods
        if not is_finished(comparison, seed, run, name)
    ]
    if not missing:
        return []
    directory, stopped = comparison.work / f"seed{seed}", []
    lock_directory(directory)
    config = copy.deepcopy(replace(comparison.config, seed=seed))
    config.validation.guidances = list(comparison.guidances)
    start = recap.start_run(config, directory, World(), fit)
    try:
        demonstrations = recap.obtain_demonstrations(start)
        sft = recap.fit_demonstrations(start, demonstrations)
        comparison.cells.require_start(seed, sft.hash[:16])
        before = to_plain(judge(start, sft), rates(start))
        comparison.cells.write(Cell(seed), {"policy": sft.hash[:16], "evaluation": before}, {})
        for number, name in missing:
            print(f"{name}: seed {seed}, run {number}")
            draws = draws_of(seed, number)
            place = directory / f"run{number}-{name}"
            method = method_of(name)(start, place, draws, sft, demonstrations)
            try:
                make_cells(comparison, method, Cell(seed, number, name))
            except GateError as error:
                stopped.append(f"{name}, seed {seed}, run {number}: {error}")
    finally:
        start.close()
    return stopped


def method_of(name: str) -> type[Method]:
    """Return a method, or RECAP with a part changed."""
    return METHODS[name] if name in METHODS else CHANGES[name.removeprefix("recap_")]


def is_finished(comparison: Comparison, seed: int, run: int, name: str) -> bool:
    """Return whether all cells of a method are there."""
    rounds = range(comparison.config.rounds + 1)
    return all(comparison.cells.has(Cell(seed, run, name, number)) for number in rounds)


def draws_of(seed: int, run: int) -> int:
    """Return the seed of what is random in training: that of the product in run 0, others in others."""
    return int(np.random.SeedSequence((seed, run)).generate_state(1)[0]) if run else seed


def make_cells(comparison: Comparison, method: Method, cell: Cell) -> None:
    """Run a method, and write a cell after each round and one of the round that is chosen in the end."""
    run, cells = method.run, comparison.cells
    own = run.config.eval.cfg_guidance_scale
    policy = best = method.sft
    num_judged = len(validations(run, policy))
    heldout = {policy.hash: cells.read(Cell(cell.seed))["evaluation"]}
    for number in range(1, run.config.rounds + 1):
        made = method.improve(number, policy)
        trials = validations(run, made.policy)
        num_judged += len(trials)
        evaluation = to_plain(judge(run, made.policy, own), rates(run))
        content = {
            "policy": made.policy.hash[:16],
            "started_from": policy.label,
            "rollouts": {
                "made": made.episodes,
                "learned_from": made.learned_from,
                "success": made.success,
            },
            "updates": 0 if made.policy is policy else made.policy.figures["steps"],
            "guidance": own,
            "validation": {f"{g:g}": each.num_successes for g, each in trials.items()},
            "evaluation": evaluation,
        }
        cells.write(Cell(cell.seed, cell.run, cell.method, number), content, _cpu(number, method))
        heldout[made.policy.hash] = evaluation
        policy, best = choose(run, policy, best, made.policy)
    guidance = guidance_on_validation(run, best)
    evaluation = heldout[best.hash]
    if best.round and guidance != own:
        evaluation = to_plain(judge(method.judging_apart(guidance), best, guidance), rates(run))
    content = {
        "chosen_round": best.round,
        "guidance": guidance,
        "validation_successes": judge_as_chosen(run, best).num_successes,
        "validation_episodes": num_judged * run.config.validation.rollouts_per_task * len(run.deadlines),
        "evaluation": evaluation,
    }
    cells.write(cell, content, {})


def rates(run: recap.Run) -> dict[str, float]:
    """Return the policy steps per simulated second of each task."""
    tasks = run.environment.suite().select(run.environment.tasks)
    return {task.id: task.hz for task in tasks}


def _cpu(number: int, method: Method) -> dict[str, float]:
    """Return the CPU seconds of a round by what they were spent on; the first round has what came before."""
    spent: dict[str, float] = {}
    tried = [None, *tried_guidances(method.run.config)]
    for kind, figures in product(
        Kind, [stages.figures() for stages in (method.stages, *method.stages_apart)]
    ):
        names = [StageName(kind, number, guidance=guidance) for guidance in tried]
        names += [StageName(kind)] if number == 1 else []
        for name in {str(n) for n in names} & figures.keys():
            spent[kind.value] = round(spent.get(kind.value, 0.0) + figures[name]["cpu_s"], 1)
    return spent

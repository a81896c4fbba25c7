"""Runs `learning.py --compare` in this process at toy size: whole, again, and with kills.

    python tests/compare_runs.py DIRECTORY

In a process of its own, without the checks of shapes that the other tests run under. So that rollouts of a
policy that has learned nothing have both outcomes, an episode succeeds by the digits of the hand's position.
Writes DIRECTORY/outcome.json.
"""

import json
import shutil
import sys
from pathlib import Path
from unittest import mock

import compare
import learning
from compare_cells import Cells
from compare_methods import METHODS
from compare_ript import Ript

from pi0.ript.checkpoint.journal import EpisodeJournal
from pi0.ript.envs.batched import BatchedEnv
from pi0.ript.envs.metaworld import MetaWorldSimulation
from pi0.ript.recap.stages import Stages
from pi0.ript.training.objectives import AdvantageObjective

SHRUNK = [
    *("task.max_episode_length=12", "task.num_parallel_envs=2", "task.image_size=32"),
    *("demonstrations.episodes=2", "sft.steps=4", "sft.batch_size=8", "value.width=16"),
    *("value.pretraining.steps=2", "value.pretraining.batch_size=8"),
    *("value.finetuning.steps=2", "value.finetuning.batch_size=8"),
    *("rollouts.num_states=8", "rollouts.per_state=2", "rollouts.pool_size=16", "rounds=2"),
    *("finetuning.training.steps=3", "finetuning.training.batch_size=8"),
    *("gates.min_concordance=0", "gates.max_fraction_error=1"),
    *("validation.rollouts_per_task=2", "eval.rollouts_per_task=4"),
]
_STEP = MetaWorldSimulation.step


def step(simulation: MetaWorldSimulation, action) -> bool:
    """A step, with a success in one of 32 places, whatever the task is."""
    _STEP(simulation, action)
    return int(abs(simulation._observation[:3]).sum() * 1e7) % 32 == 0


def run(directory: Path) -> None:
    arguments = ["--compare", ",".join(METHODS), "--seeds", "1", "--guidance", "1,2"]
    places = ["--results", str(directory / "results"), "--work", str(directory / "work")]
    with (
        mock.patch.object(sys, "argv", ["learning.py", *arguments, *places, *SHRUNK]),
        mock.patch.object(MetaWorldSimulation, "step", step),
        mock.patch.object(compare, "setup_signal_handlers"),
        mock.patch.object(Ript, "group_size", 4),
    ):
        learning.main()


def counted(directory: Path) -> dict[str, int]:
    """Run, and return how many episodes began from training states in each round of each method."""
    counts: dict[str, int] = {}
    send = BatchedEnv.send
    now = [""]

    def counting(env, states, *others):
        counts[now[0]] = counts.get(now[0], 0) + sum(s.split == "train" for s in states.values())
        return send(env, states, *others)

    def told(name, improve):
        def call(method, number, policy):
            now[0] = f"{name}-round{number}"
            counts.setdefault(now[0], 0)
            made = improve(method, number, policy)
            now[0] = ""
            return made

        return call

    with mock.patch.object(BatchedEnv, "send", counting):
        kinds = {name: type(name, (kind,), {}) for name, kind in METHODS.items()}
        for name, kind in kinds.items():
            kind.improve = told(name, kind.improve)
        with mock.patch.object(compare, "METHODS", kinds):
            run(directory)
    return counts


def killed(directory: Path) -> int:
    """Die at the ends of stages and cells, and in rollouts and training of RIPT; return how often."""
    calls, deaths = {"stage": 0, "cell": 0, "episode": 0, "loss": 0}, 0
    fatal = {"stage": {5, 16, 33}, "cell": {3, 10}, "episode": {7}, "loss": {2}}

    def dying(kind, function, is_before):
        def call(*arguments, **options):
            calls[kind] += 1
            if calls[kind] in fatal[kind] and is_before:
                raise KeyboardInterrupt
            result = function(*arguments, **options)
            if calls[kind] in fatal[kind]:
                raise KeyboardInterrupt
            return result

        return call

    with (
        mock.patch.object(Stages, "_finish", dying("stage", Stages._finish, True)),
        mock.patch.object(Cells, "write", dying("cell", Cells.write, False)),
        mock.patch.object(EpisodeJournal, "write", dying("episode", EpisodeJournal.write, False)),
        mock.patch.object(AdvantageObjective, "sums", dying("loss", AdvantageObjective.sums, False)),
    ):
        while True:
            try:
                run(directory)
                return deaths
            except KeyboardInterrupt:
                deaths += 1


def main(place: Path) -> None:
    counts = counted(place / "whole")
    shutil.rmtree(place / "whole/work")
    with mock.patch.object(compare.recap, "start_run", side_effect=AssertionError("it is all there")):
        run(place / "whole")
    deaths = killed(place / "killed")
    (place / "outcome.json").write_text(json.dumps({"counts": counts, "deaths": deaths}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

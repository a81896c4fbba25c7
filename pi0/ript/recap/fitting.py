"""The supervised fit of RECAP's stages: of a policy or a value function, on random batches of a mixture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pi0.ript.checkpoint.files import published
from pi0.ript.checkpoint.resuming import Advice, find_same_run
from pi0.ript.checkpoint.snapshot import trained_parameters
from pi0.ript.distributed import World
from pi0.ript.labels.sources import Mixture
from pi0.ript.training.objectives import Model, Objective
from pi0.ript.training.optimization import linear_schedule, make_optimizer, set_learning_rate
from pi0.ript.training.settings import PolicyTraining, ValueTraining
from pi0.ript.training.snapshots import Snapshots
from pi0.ript.training.steps import Row, Steps
from pi0.value import ValueFunction

Training = PolicyTraining | ValueTraining
ADVICE = Advice(
    resume="start the same command again",
    anew="remove its directory, and the stage begins again",
    weights="what policy_path names, or the stage that it starts from",
)

_FORMAT_0 = "checkpoint.pt"


@dataclass(frozen=True)
class Keeping:
    """What happens to a training under way."""

    directory: Path | None = None
    """Of its snapshots; None keeps none."""
    save_minutes: float | None = None
    max_nonfinite_steps: int = 3

    def steps(
        self, name: str, model: Model, optimizer: torch.optim.Optimizer, settings: Training, world: World
    ) -> Steps:
        """Return the steps of a training that are left."""
        snapshots = self.directory and Snapshots(
            self.directory,
            model,
            optimizer,
            settings,
            ADVICE,
            world.on_main(_find, self.directory, settings),
            peers=world,
            save_minutes=self.save_minutes,
            reads=model.reads if isinstance(model, ValueFunction) else None,
        )
        limit = self.max_nonfinite_steps
        return Steps(settings.steps, name=name, world=world, snapshots=snapshots, max_nonfinite_steps=limit)


def _find(directory: Path, settings: Training) -> Path | None:
    if published(directory):
        return find_same_run(directory, settings, advice=ADVICE)
    if (directory / _FORMAT_0).exists():
        print(  # noqa: T201
            f"{directory / _FORMAT_0}: version 0.1.0 stopped inside this stage, and this version does not "
            "read that file: the stage begins again; to keep its steps, let version 0.1.0 finish it"
        )
    return None


def fit(
    objective: Objective,
    mixture: Mixture,
    settings: Training,
    seed: Sequence[int],
    name: str,
    keeping: Keeping,
    world: World,
) -> list[Row]:
    """Train the objective's model; return the figures of every step.

    Windows are a function of (seed, step), and what is random about one of them of (seed, step, window).
    """
    model, learner = objective.model, world.wrap(objective.learner())
    optimizer = make_optimizer(
        model,
        settings.learning_rate,
        settings.weight_decay,
        indicator_learning_rate=settings.indicator_learning_rate,
    )
    steps = keeping.steps(name, model, optimizer, settings, world)
    trained = list(trained_parameters(model).values())
    model.train()
    for step in steps:
        key = (*seed, step)
        drawn = mixture.draw(settings.batch_size, key)
        sums = torch.zeros(len(objective.figures), device=model.device)
        for windows in world.micro_batches(learner, drawn, settings.micro_batch_size):
            figures = objective.sums(learner, mixture.batch(windows), key, is_training=True) / len(drawn)
            world.backward(figures[0])
            sums += figures.detach()
        norm = torch.nn.utils.clip_grad_norm_(trained, settings.grad_norm_clip)
        factor = linear_schedule(step, settings.steps, settings.warmup_steps, settings.decay_fraction)
        set_learning_rate(optimizer, factor)
        row = dict(zip(objective.figures, map(world.sum, sums), strict=True))
        if steps.accept(row | objective.shares(drawn, key), norm):
            optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return steps.rows

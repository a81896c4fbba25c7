"""Trains a value function on returns, and says on held-out episodes how good it is.

Axes: n frame of a set, m frame of all sets, e episode.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from pi0.ript.distributed import World
from pi0.ript.labels.calibration import Calibration, heldout_calibration, heldout_episodes
from pi0.ript.labels.returns import RewardConfig
from pi0.ript.labels.sources import Mixture, Source
from pi0.ript.training.objectives import ValueLearner
from pi0.ript.training.settings import ValueTraining
from pi0.ript.training.steps import Row, TrainingSteps
from pi0.value import ValueFunction


def train_value(
    value: ValueFunction,
    sources: Sequence[Source],
    reward: RewardConfig,
    settings: ValueTraining,
    seed: Sequence[int] = (0,),
    *,
    log: Callable[[Row], None] | None = None,
    checkpoint: Path | None = None,
    world: World | None = None,
) -> Calibration:
    """Minimise the cross entropy of the returns' bins; return how good the values are on held-out episodes.

    Batches are a function of (seed, step); the held-out episodes of the seed's first number alone, so that a
    value function that is trained further is not judged on what it has seen. `log`, `checkpoint` and `world`
    are those of `train_policy`.
    """
    world = world or World()
    if value.config.num_bins != reward.number_of_bins:
        raise ValueError(
            f"number_of_bins: expected the value function's {value.config.num_bins}, found "
            f"{reward.number_of_bins}"
        )
    heldout = [heldout_episodes(source, settings.validation_fraction, seed[:1]) for source in sources]
    usable = [~np.repeat(h, s.episodes.lengths) for h, s in zip(heldout, sources, strict=True)]
    mixture = Mixture(sources, 1, usable)
    returns = torch.from_numpy(np.concatenate([source.returns(reward) for source in sources]))
    optimizer = torch.optim.AdamW(
        value.parameters(),
        lr=settings.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=settings.weight_decay,
    )
    learner = world.wrap(ValueLearner(value))
    steps = TrainingSteps(
        settings.steps,
        value,
        optimizer,
        description="value function",
        checkpoint=checkpoint,
        log=log,
        world=world,
    )
    value.train()
    for step in steps:
        drawn = mixture.draw(settings.batch_size, (*seed, step))
        sums = torch.zeros(3, device=value.device)
        for windows in world.micro_batches(learner, drawn, settings.micro_batch_size):
            found = learner(mixture.batch(windows), returns[windows]) * (len(windows) / len(drawn))
            world.backward(found[0])
            sums += found.detach()
        optimizer.param_groups[0]["lr"] = settings.learning_rate * min(
            1.0, (settings.steps - step) / (0.3 * settings.steps)
        )
        steps.update(settings.grad_norm_clip)
        loss, accuracy, error = (world.sum(one) for one in sums)
        shown = {"loss": f"{loss:.3f}", "train_accuracy": f"{accuracy:.2f}"}
        steps.done({"loss": loss, "train_accuracy": accuracy, "error": error}, shown)
    value.eval()
    return heldout_calibration(value, sources, reward, heldout, world)

"""Gates do not open by chance where few episodes are held out, nor for a value function fitted to noise.

Exit code 0: right; 1: wrong, with what is wrong. Run from the root of a checkout.
"""

import contextlib
import io

import numpy as np
from harness import check, end  # first: it makes the tests importable

from conftest import TASKS, toy_policy  # isort: skip
from pi0.ript.data.frame_set import FrameSet
from pi0.ript.data.records import Episode, EpisodeLabels
from pi0.ript.distributed import World
from pi0.ript.labels.calibration import Calibration, calibration, heldout_calibration, heldout_episodes
from pi0.ript.labels.returns import Outcome, RewardConfig, returns
from pi0.ript.labels.sources import Source
from pi0.ript.recap.gates import GateError, Gates, LabelFigures, check_gates
from pi0.ript.recap.objectives import value_objective
from pi0.ript.recap.snapshot_plan import SnapshotPlan
from pi0.ript.training.settings import ValueTraining
from pi0.value import ValueFunction
from pi0.value_config import expert_value_config
from train_ript_pi0_final import fit

LABELS = LabelFigures(coverage=1.0, positive_fraction=0.3, target_fraction=0.3)
REWARD = RewardConfig(C_neg=-12.0, N_steps_look_ahead=4).resolve(12)


def opens(judged: Calibration) -> bool:
    try:
        check_gates(judged, LABELS, Gates())
    except (GateError, ValueError):
        return False
    return True


def fitted_to_noise(seed: int) -> Calibration:
    """Return how 500 steps on three episodes of pure noise are judged, on a fourth."""
    made = []
    for number in range(4):
        rng = np.random.default_rng((seed, number))
        images = {"front": rng.integers(0, 256, (10, 16, 16, 3), dtype=np.uint8)}
        states, actions = (rng.normal(size=(10, width)).astype(np.float32) for width in (4, 3))
        labels = EpisodeLabels(TASKS[0], number % 2 == 0, task_id="s/0", seed=number)
        made.append(Episode(images, states, actions, labels))
    policy = toy_policy(indicator="embedding")
    value = ValueFunction(expert_value_config(policy, 16), policy, seed=seed)
    settings = ValueTraining(steps=500, batch_size=8, micro_batch_size=8)
    sources = [Source(f"r{seed}", FrameSet.in_memory(made, fps=20))]
    heldout = [heldout_episodes(source, settings.validation_fraction, (seed,)) for source in sources]
    with contextlib.redirect_stderr(io.StringIO()):
        fit(*value_objective(value, sources, REWARD, heldout), settings, (seed,), SnapshotPlan(), World())
    return heldout_calibration(value, sources, REWARD, heldout)


# Values at random, judged as RECAP judges them: on n episodes of 10 frames, successes and failures in turn.
for n in (1, 2, 4, 8):
    ends = [Outcome.SUCCESS if i % 2 == 0 else Outcome.FAILURE for i in range(n)]
    targets = np.concatenate([returns(10, end, REWARD) for end in ends])
    rng = np.random.default_rng(n)
    draws = [calibration(rng.uniform(-1, 0, 10 * n), targets, [10] * n, ["s/0"] * n) for _ in range(1000)]
    share = np.mean([opens(judged) for judged in draws])
    check(
        share <= 0.05,
        f"random values, {n} held-out episode(s): the gates open in {share:.1%} of 1000 draws (at most 5 %)",
    )

opened = []
for seed in range(4):
    judged = fitted_to_noise(seed)
    if opens(judged):
        opened.append(f"seed {seed}: {judged}")
check(not opened, f"500 steps on pure noise: the gates opened for {len(opened)} of 4 seeds {opened}")

end()

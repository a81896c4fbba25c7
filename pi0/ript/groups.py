"""Groups: K rollouts from one initial state, kept only if they differ in outcome (RIPT: dynamic sampling).

Axes: n groups, g episodes in a group.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from jaxtyping import Float
from torch.utils.data import Dataset
from tqdm import tqdm

from pi0.ript.advantage import is_informative, leave_one_out
from pi0.ript.envs import BatchedEnv, InitialState, require_disjoint
from pi0.ript.rollout import ChunkPolicy, Rollout, rollout
from pi0.ript.windows import Windows, rollout_windows


class InitialStateDataset(Dataset[InitialState]):
    """The training states of the environment's tasks: `num_states` per task, never a held-out one."""

    def __init__(self, env: BatchedEnv, num_states: int) -> None:
        self.states = [s for task in env.tasks for s in env.initial_states(task, "train", range(num_states))]

    def __len__(self) -> int:
        """Return the number of states of all tasks."""
        return len(self.states)

    def __getitem__(self, index: int) -> InitialState:
        """Return one state."""
        return self.states[index]

    def shuffled(self, seed: int) -> Iterator[InitialState]:
        """Yield the states without end: each once in a random order, then again in another."""
        generator = np.random.default_rng(seed)
        while True:
            for index in generator.permutation(len(self)).tolist():
                yield self[index]


def heldout_states(env: BatchedEnv, indices: Iterable[int], train: InitialStateDataset) -> list[InitialState]:
    """Return these held-out states of each task; one that is also trained on is an error."""
    indices = list(indices)
    states = [s for task in env.tasks for s in env.initial_states(task, "heldout", indices)]
    require_disjoint(train.states, states)
    return states


@dataclass(frozen=True)
class Group:
    """The rollouts from one initial state."""

    rollouts: Sequence[Rollout]

    @property
    def rewards(self) -> Float[np.ndarray, " g"]:
        """1 for a success, 0 for a failure."""
        return np.array([float(r.success) for r in self.rollouts])


@dataclass(frozen=True)
class Collection:
    """What one iteration collected."""

    kept: Sequence[Group]  # of mixed outcome
    tried: Sequence[Group]

    @property
    def success_rate(self) -> float:
        """Return the share of successes in all rollouts, the dropped ones too."""
        return float(np.mean([group.rewards.mean() for group in self.tried]))

    def windows(self, horizon: int) -> Windows:
        """Return the training windows of the kept groups with leave-one-out advantages; can be empty."""
        groups = self.kept or self.tried[:1]
        advantages = leave_one_out(np.stack([group.rewards for group in groups])).ravel()
        windows = rollout_windows(
            [r for group in groups for r in group.rollouts], advantages.tolist(), horizon
        )
        return windows if self.kept else windows.select(np.arange(0))


def collect_groups(
    env: BatchedEnv,
    policy: ChunkPolicy,
    states: Iterator[InitialState],
    *,
    num_groups: int,
    group_size: int,
    max_attempts: int,
    seed: tuple[int, ...],
    render_every: int | None = None,
) -> Collection:
    """Return `num_groups` groups of mixed outcome, or as many as `max_attempts` states gave.

    Works in rounds: as many states as groups are missing are tried at once, so that all slots stay busy.
    Episode noise is keyed by (seed, attempt, episode), whatever the number of slots and workers.
    """
    if group_size < 2:
        leave_one_out(np.zeros((1, group_size)))  # says why
    tried: list[Group] = []
    kept: list[Group] = []
    with tqdm(unit="episode", desc="rollouts", leave=False) as bar:

        def on_finished(episode: Rollout) -> None:
            bar.update()

        while len(kept) < num_groups and len(tried) < max_attempts:
            missing = min(num_groups - len(kept), max_attempts - len(tried))
            drawn = [state for state in islice(states, missing) for _ in range(group_size)]
            first = len(tried) * group_size
            seeds = [_episode_seed(*seed, first + i) for i in range(len(drawn))]
            bar.total = first + len(drawn)
            finished = rollout(env, policy, drawn, seeds, render_every=render_every, on_finished=on_finished)
            groups = [Group(finished[i : i + group_size]) for i in range(0, len(finished), group_size)]
            tried += groups
            kept += [group for group in groups if is_informative(group.rewards[None])[0]]
            bar.set_postfix(groups=f"{len(kept)}/{num_groups}")
    collection = Collection(kept, tried)
    if not kept:
        tqdm.write(
            f"all {len(tried)} groups had one outcome ({100 * collection.success_rate:.0f}% of the rollouts "
            "succeeded), so there is nothing to learn from: use tasks of middling difficulty, more "
            "rollouts per "
            "state (group_size), more states (max_sampling_attempts), or a better warm start"
        )
    return collection


def _episode_seed(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1)[0])  # torch's CPU generator has 32 bits of seed

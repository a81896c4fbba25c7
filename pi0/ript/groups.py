"""Groups: K rollouts from one initial state, kept only if they differ in outcome (RIPT: dynamic sampling).

Axes: n groups, g episodes in a group.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import batched, count, islice
from typing import Any

import numpy as np
from jaxtyping import Float
from torch.utils.data import Dataset

from pi0.ript.advantage import OF_RIPT, LearningRule, require_group
from pi0.ript.debugging import VIDEO, next_file
from pi0.ript.envs import BatchedEnv, InitialState, require_disjoint
from pi0.ript.envs.initial_state import Split
from pi0.ript.episode import START, Chunks, Rollout, lean
from pi0.ript.peers import ALONE, Peers, Turns, gather_shares, gather_turns, longest_wait, share
from pi0.ript.progress import print_above, progress_bar
from pi0.ript.rollout import ChunkPolicy, RolloutFunction, rollout
from pi0.ript.video import write_grid
from pi0.ript.windows import Windows, chunk_windows, rollout_windows


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
        """Yield the states without end: each in a random order, then again in another."""
        return (self[state_at(position, len(self), seed)] for position in count())


def state_at(position: int, num_states: int, seed: int) -> int:
    """Return which state is at a position of the endless random order in which training visits the states."""
    epoch, offset = divmod(position, num_states)
    return int(_order(epoch, num_states, seed)[offset])


@lru_cache(maxsize=4)
def _order(epoch: int, num_states: int, seed: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(num_states)


def heldout_states(env: BatchedEnv, first: int, count: int, train: InitialStateDataset) -> list[InitialState]:
    """Return `count` held-out states of each task; one that is also trained on is an error."""
    return states_outside(train, env, "heldout", first, count)


def states_outside(
    train: InitialStateDataset, env: BatchedEnv, kind: Split, first: int, count: int
) -> list[InitialState]:
    """Return `count` "heldout" or "validation" states of each task; one that is trained on is an error."""
    indices = range(first, first + count)
    states = [s for task in env.tasks for s in env.initial_states(task, kind, indices)]
    require_disjoint(train.states, states)
    return states


@dataclass(frozen=True)
class ActingPolicy:
    """Who acts in the rollouts of an algorithm, and how they are learned from."""

    actor: ChunkPolicy
    rule: LearningRule

    def chunks(self, *arguments: Any, **named: Any) -> Chunks:
        """Return the actor's chunks."""
        return self.actor.chunks(*arguments, **named)


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
    longest_wait: float | None = None
    """Seconds that a process waited for the others; None: alone."""
    rule: LearningRule = OF_RIPT

    @property
    def success_rate(self) -> float:
        """Return the share of successes in all rollouts, the dropped ones too."""
        return float(np.mean([group.rewards.mean() for group in self.tried]))

    def metrics(self) -> dict[str, Any]:
        """Return what a log should say of it; steps are policy steps until success or deadline."""
        rewards = np.stack([group.rewards for group in self.tried])
        return {
            "rollout/success": self.success_rate,
            "rollout/groups": len(self.kept),
            "rollout/attempts": len(self.tried),
            "rollout/advantage_std": float(self.rule.advantages(rewards).std()),
            "rollout/steps": float(np.mean([len(r) for group in self.tried for r in group.rollouts])),
            **({} if self.longest_wait is None else {"time/longest_wait": round(self.longest_wait, 1)}),
        }

    def windows(self, horizon: int, max_per_episode: int | None = None) -> Windows:
        """Return the training windows of the kept groups with the rule's advantages; can be empty.

        `max_per_episode` of them at most, spread evenly back from the end of the episode; None: all.
        """
        groups = self.kept or self.tried[:1]
        advantages = self.rule.advantages(np.stack([group.rewards for group in groups])).ravel()
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        if not self.kept:
            return rollout_windows(rollouts, advantages.tolist(), horizon).select(np.arange(0))
        make = chunk_windows if self.rule.by_chunk else rollout_windows
        windows = make(rollouts, advantages.tolist(), horizon)
        if max_per_episode is None:
            return windows
        counts = [len(r.chunks[START] if self.rule.by_chunk else r.observed) for r in rollouts]
        ends = zip(np.cumsum(counts) - 1, counts, strict=True)
        kept = [np.linspace(end, end - n + 1, min(n, max_per_episode)).round()[::-1] for end, n in ends]
        return windows.select(np.concatenate(kept).astype(np.int64))


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
    peers: Peers = ALONE,
    run: RolloutFunction = rollout,
) -> Collection:
    """Return `num_groups` groups of mixed outcome, or as many as `max_attempts` states gave.

    Works in rounds: as many states as groups are missing are tried at once, so that all slots stay busy.
    Episode noise is keyed by (seed, attempt, episode), whatever the number of slots, workers and peers.

    Args:
        env: The environment that runs the episodes.
        policy: The policy that acts; the same on all peers. An `ActingPolicy` says how its episodes are
            learned from, others are learned from as in RIPT.
        states: This process's share of the states to try: of attempt i it is peer `i % size` that has it.
        num_groups: How many groups of mixed outcome all peers together are to find.
        group_size: Episodes from each state (K).
        max_attempts: States to try at most, by all peers together.
        seed: The seed of the noise.
        render_every: Keep images for training inside chunks, every so many steps, where windows begin there.
        peers: The processes that collect together. Each returns the whole collection.
        run: The function that runs a list of episodes; see `rollout`.
    """
    require_group(group_size)
    rule = policy.rule if isinstance(policy, ActingPolicy) else OF_RIPT
    between = None if rule.by_chunk else render_every
    tried: list[Group] = []
    kept: list[Group] = []
    wait = 0.0
    with progress_bar(unit="episode", desc="rollouts", total=0, leave=False, disable=peers.rank > 0) as bar:
        while len(kept) < num_groups and len(tried) < max_attempts:
            attempts = range(len(tried), min(len(tried) + num_groups - len(kept), max_attempts))
            mine = share(attempts, peers, len(tried))
            drawn = gather_shares(list(islice(states, len(mine))), peers, len(tried))
            drawn = [state for state in drawn for _ in range(group_size)]
            seeds = [_episode_seed(*seed, group_size * a + k) for a in attempts for k in range(group_size)]
            bar.total += len(mine) * group_size
            turns = peers.turns(len(drawn))

            def on_finished(_: Rollout, turns: Turns = turns) -> None:
                turns.note_finished()
                bar.update()

            options = {"turns": turns, "render_every": between, "on_finished": on_finished}
            finished = run(env, policy, drawn, seeds, **options)
            if finished and (file := next_file(VIDEO, ".mp4")) is not None:
                write_grid(file, finished)
            wait += longest_wait(turns, peers) if peers.size > 1 else 0.0
            groups = _groups(finished, turns, group_size, peers, rule)
            tried += groups
            kept += [group for group in groups if rule.is_kept(group.rewards[None])[0]]
            bar.set_postfix(groups=f"{len(kept)}/{num_groups}")
    collection = Collection(kept, tried, wait if peers.size > 1 else None, rule)
    if not kept and peers.rank == 0:
        print_above(
            f"all {len(tried)} groups had one outcome ({100 * collection.success_rate:.0f}% of the rollouts "
            "succeeded), so there is nothing to learn from: use tasks of middling difficulty, more rollouts "
            "per state (rloo_batch_size), more states (max_sampling_attempts), or a better warm start"
        )
    return collection


def _groups(
    finished: Sequence[Rollout], turns: Turns, size: int, peers: Peers, rule: LearningRule
) -> list[Group]:
    """Return everybody's episodes as groups, lean where nothing can be learned from them."""
    successes = gather_turns([float(rollout.success) for rollout in finished], turns, peers)
    is_kept = rule.is_kept(np.reshape(successes, (-1, size)))
    pairs = zip(sorted(turns.taken), finished, strict=True)
    mine = [rollout if is_kept[i // size] else lean(rollout) for i, rollout in pairs]
    rollouts = gather_turns(mine, turns, peers)
    return [Group(group) for group in batched(rollouts, size)]


def _episode_seed(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1)[0])  # torch's CPU generator has 32 bits of seed

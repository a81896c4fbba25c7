"""Rollouts as episodes of a data set: every frame with its image, finished ones safe from a kill.

Axes: none.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from pi0.ript.envs import BatchedEnv, InitialState
from pi0.ript.episodes import Episode, EpisodeDataError, EpisodeLabels, EpisodeSet, EpisodeWriter
from pi0.ript.rollout import ChunkPolicy, Rollout, rollout

_ROUNDS_IN_MEMORY = 4  # episodes per slot that run before their images are let go


def record_rollouts(
    env: BatchedEnv,
    policy: ChunkPolicy,
    states: Sequence[InitialState],
    seeds: Sequence[int],
    writer: EpisodeWriter,
    source: str,
) -> None:
    """Store one episode per initial state under its place in the list; those already stored do not run again.

    Raises:
        ValueError: A state occurs twice with one seed; that would be the same episode.
    """
    numbers = {(state.hash, seed): i for i, (state, seed) in enumerate(zip(states, seeds, strict=True))}
    if len(numbers) != len(states):
        raise ValueError("seeds: expected different ones for rollouts from one state, found one twice")
    finished = writer.finished()
    todo = [i for i in range(len(states)) if i not in finished]
    with tqdm(total=len(states), initial=len(finished), unit="episode", desc="rollouts") as bar:

        def store(episode: Rollout) -> None:
            number = numbers[episode.initial_state.hash, episode.seed]
            writer.add(number, rollout_episode(episode, source))
            bar.update()

        size = _ROUNDS_IN_MEMORY * env.num_slots
        for part in (todo[i : i + size] for i in range(0, len(todo), size)):
            rollout(
                env,
                policy,
                [states[i] for i in part],
                [seeds[i] for i in part],
                render_every=1,
                on_finished=store,
            )


def rollout_episode(rollout: Rollout, source: str) -> Episode:
    """Return a rollout as an episode; `source` says who acted, as `EpisodeLabels.source`.

    Raises:
        EpisodeDataError: It has no image of some steps.
    """
    if not np.array_equal(rollout.observed, np.arange(len(rollout))):
        raise EpisodeDataError(
            f"rollout: expected images of all {len(rollout)} steps, found {len(rollout.observed)}; run it "
            "with render_every=1"
        )
    return Episode(
        images=rollout.images,
        states=rollout.states,
        actions=rollout.actions,
        labels=EpisodeLabels(
            instruction=rollout.task.instruction,
            success=rollout.success,
            task_id=rollout.task.id,
            initial_state_hash=rollout.initial_state.hash,
            source=source,
            seed=rollout.seed,
        ),
    )


def episode_set(episodes: Sequence[Episode], fps: int) -> EpisodeSet:
    """Return episodes as a set in memory, with the content hash that they would have on disk."""
    lengths = np.array([len(e) for e in episodes], np.int64)
    hashes = "\n".join(e.content_hash() for e in episodes)
    return EpisodeSet(
        images={c: np.concatenate([e.images[c] for e in episodes]) for c in episodes[0].images},
        states=np.concatenate([e.states for e in episodes]),
        actions=np.concatenate([e.actions for e in episodes]),
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
        labels=tuple(e.labels for e in episodes),
        fps=fps,
        collection={"content_hash": hashlib.sha256(hashes.encode()).hexdigest()},
    )

"""Rollouts that are kept: an episode that is finished is not run again by a process that is started again.

`remembering` puts a memory around `rollout`. What it remembers is in a store: the journal of a run
(`pi0.ript.checkpoint.journal`), or a data set that is being made (`DatasetStore`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from pi0.ript.data.encoding import default_storage
from pi0.ript.data.records import CollectionInfo, Episode, EpisodeDataError, EpisodeLabels
from pi0.ript.data.writer import EpisodeWriter
from pi0.ript.envs import BatchedEnv, InitialState, Task
from pi0.ript.episode import Chunks, Rollout, without_images
from pi0.ript.interruption import leave_if_asked, stop_requested
from pi0.ript.peers import ALONE, Peers, Turns, share, tell_wait, turns_alone
from pi0.ript.progress import progress_bar
from pi0.ript.rollout import ChunkPolicy, FunctionPolicy, RolloutFunction, rollout

_ROUNDS_IN_MEMORY = 4  # episodes per slot that run before their images are dropped


@runtime_checkable
class EpisodeStore(Protocol):
    """Finished episodes, found by initial state and noise seed; several processes may share it."""

    @property
    def needs_images(self) -> bool:
        """Whether it keeps the image of every step, whatever the caller wants to see."""
        ...

    def has(self, state: InitialState, seed: int) -> bool:
        """Return whether an episode is there."""
        ...

    def read(self, task: Task, state: InitialState, seed: int, with_images: bool) -> Rollout | None:
        """Return an episode; None if it is not there, or not with the images that are asked for."""
        ...

    def write(self, episode: Rollout) -> None:
        """Add an episode; once this returns it survives a kill."""
        ...


def remembering(
    store: EpisodeStore, stop_if_asked: Callable[[], None], run: RolloutFunction = rollout
) -> RolloutFunction:
    """Return `run` with a memory: what the store has does not run again, what is finished is added to it.

    Args:
        store: The episodes of one policy.
        stop_if_asked: Called at the end, on every process; raises if one of them was asked to stop. Episodes
            under way are left at their next chunk then.
        run: The function that runs the episodes that are not there.
    """

    def run_the_others(
        env: BatchedEnv,
        policy: ChunkPolicy,
        states: Sequence[InitialState],
        seeds: Sequence[int],
        *,
        turns: Turns | None = None,
        render_every: int | None = None,
        keep_images: bool = True,
        on_finished: Callable[[Rollout], None] | None = None,
    ) -> list[Rollout]:
        report = on_finished or (lambda _: None)
        turns = turns or turns_alone(len(states))
        drops_images = store.needs_images and not keep_images
        episodes: dict[int, Rollout] = {}
        missing: list[int] = []

        def numbers() -> Iterator[int]:
            for number in turns:
                state = states[number]
                episode = store.read(env.tasks[state.task], state, seeds[number], keep_images)
                if episode is None:
                    missing.append(number)
                    yield number
                else:
                    episodes[number] = episode
                    report(episode)

        def keep(episode: Rollout) -> None:
            store.write(episode)
            report(episode)

        waiting, part_size = numbers(), _ROUNDS_IN_MEMORY * env.num_slots if drops_images else None
        try:
            while finished := run(
                env,
                _until_asked_to_stop(policy),
                states,
                seeds,
                turns=islice(waiting, part_size),
                render_every=1 if store.needs_images else render_every,
                keep_images=keep_images or store.needs_images,
                on_finished=keep,
            ):
                kept = (without_images(episode) if drops_images else episode for episode in finished)
                episodes |= dict(zip(sorted(missing), kept, strict=True))
                missing.clear()
        except _StoppedEarlyError:
            turns.end()  # the others shall not run what is left; `stop_if_asked` raises
        stop_if_asked()
        return [episodes[number] for number in sorted(episodes)]

    return run_the_others


class _StoppedEarlyError(Exception):
    """Episodes were not finished because this process was asked to stop."""


def _until_asked_to_stop(policy: ChunkPolicy) -> ChunkPolicy:
    """Return the policy, which raises _StoppedEarlyError when it is to act and the process is to stop."""

    def chunks(*arguments: Any) -> Chunks:
        if stop_requested():
            raise _StoppedEarlyError
        return policy.chunks(*arguments)

    return FunctionPolicy(chunks)


# Data sets ----------------------------------------------------------------------------------------------


class DatasetStore:
    """Episodes of a data set that is being made, each with the image of every step."""

    needs_images = True

    def __init__(
        self, writer: EpisodeWriter, states: Sequence[InitialState], seeds: Sequence[int], source: str
    ) -> None:
        """Give each episode the number of its place in a list.

        Args:
            writer: The writer of the data set.
            states: Where the episodes begin.
            seeds: The seeds of their noise.
            source: Who acts, as `EpisodeLabels.source`.

        Raises:
            ValueError: A state occurs twice with one seed; that would be the same episode.
        """
        self._writer, self._source = writer, source
        pairs = zip(states, seeds, strict=True)
        self._numbers = {(state.hash, seed): number for number, (state, seed) in enumerate(pairs)}
        if len(self._numbers) != len(states):
            raise ValueError("seeds: expected different ones for rollouts from one state, found one twice")

    def has(self, state: InitialState, seed: int) -> bool:
        """Return whether an episode is there."""
        return self._writer.has(self._numbers[state.hash, seed])

    def read(self, task: Task, state: InitialState, seed: int, with_images: bool) -> Rollout | None:
        """Return an episode, with the images as they are stored; None if it is not there."""
        episode = self._writer.read(self._numbers[state.hash, seed], with_images)
        if episode is None:
            return None
        return Rollout(
            task=task,
            initial_state=state,
            seed=seed,
            success=episode.labels.is_success,
            states=episode.states,
            actions=episode.actions,
            observed=np.arange(len(episode) if with_images else 0),
            images=episode.images,
        )

    def write(self, episode: Rollout) -> None:
        """Add an episode; once this returns it survives a kill."""
        number = self._numbers[episode.initial_state.hash, episode.seed]
        self._writer.add(number, rollout_episode(episode, self._source))


def rollouts_writer(directory: Path, env: BatchedEnv, origin: Mapping[str, Any]) -> EpisodeWriter:
    """Return the writer of a data set of rollouts, named and stored as demonstrations of its tasks are.

    Args:
        directory: The directory of the data set; must not exist.
        env: The environment that runs the episodes.
        origin: What the data set says about its making, as plain JSON values.

    Raises:
        EpisodeDataError: The directory exists, or an interrupted recording there is of other settings.
    """
    task = next(iter(env.tasks.values()))
    info = CollectionInfo(task.hz, task.robot, default_storage(task.image_size), dict(origin))
    return EpisodeWriter(directory, info)


def record_rollouts(
    env: BatchedEnv,
    policy: ChunkPolicy,
    states: Sequence[InitialState],
    seeds: Sequence[int],
    store: EpisodeStore,
    peers: Peers = ALONE,
) -> None:
    """Store one episode per initial state; peers share the work, and all of it is done when this returns.

    Raises:
        StoppedError: A process was asked to stop; finished episodes are stored.
    """
    turns, successes = peers.turns(len(states)), 0
    share_size = len(share(states, peers))
    with progress_bar(total=share_size, unit="episode", desc="rollouts", disable=peers.rank > 0) as bar:

        def show(episode: Rollout) -> None:
            nonlocal successes
            successes += episode.success
            turns.note_finished()
            bar.set_postfix_str(f"{successes} succeeded", refresh=False)
            bar.update()

        run = remembering(store, partial(leave_if_asked, peers))
        run(env, policy, states, seeds, turns=turns, keep_images=False, on_finished=show)
        bar.total = bar.n  # its share was a guess
    tell_wait("rollouts", turns, peers)


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

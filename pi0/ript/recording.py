"""Rollouts that are kept: in a journal, or as episodes of a data set with the image of every frame.

Axes: none.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pi0 import PI0Policy
from pi0.pretrained import OWN_WEIGHTS
from pi0.ript.checkpoint.journal import EpisodeJournal
from pi0.ript.distributed import World
from pi0.ript.envs import BatchedEnv, InitialState
from pi0.ript.episodes import (
    CollectionInfo,
    Episode,
    EpisodeDataError,
    EpisodeLabels,
    EpisodeSet,
    EpisodeWriter,
    default_storage,
)
from pi0.ript.evaluate import EpisodeResult, Evaluation, episode_seed
from pi0.ript.interruption import StoppedError, stop_requested
from pi0.ript.peers import ALONE, Peers, share
from pi0.ript.progress import progress_bar
from pi0.ript.rollout import ChunkPolicy, GuidedPolicy, Rollout, RolloutFunction, rollout

_ROUNDS_IN_MEMORY = 4  # episodes per slot that run before their images are let go


def record_rollouts(
    env: BatchedEnv,
    policy: ChunkPolicy,
    states: Sequence[InitialState],
    seeds: Sequence[int],
    writer: EpisodeWriter,
    source: str,
    peers: Peers = ALONE,
) -> None:
    """Store one episode per initial state under its place in the list; those already stored do not run again.

    Peers share the work. The episodes are whole when all of them have returned.

    Raises:
        ValueError: A state occurs twice with one seed; that would be the same episode.
        StoppedError: The process was asked to stop; finished episodes are stored.
    """
    numbers = {(state.hash, seed): i for i, (state, seed) in enumerate(zip(states, seeds, strict=True))}
    if len(numbers) != len(states):
        raise ValueError("seeds: expected different ones for rollouts from one state, found one twice")
    finished = writer.finished()
    mine = share(range(len(states)), peers)
    todo = [i for i in mine if i not in finished]
    successes = sum(labels.success for number, (labels, _) in finished.items() if number in mine)
    options = {"unit": "episode", "desc": "rollouts", "disable": peers.rank > 0}
    with progress_bar(total=len(mine), initial=len(mine) - len(todo), **options) as bar:

        def store(episode: Rollout) -> None:
            nonlocal successes
            number = numbers[episode.initial_state.hash, episode.seed]
            writer.add(number, rollout_episode(episode, source))
            successes += episode.success
            bar.set_postfix_str(f"{successes} succeeded", refresh=False)
            bar.update()
            if code := stop_requested():
                raise StoppedError(code)

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


def record_evaluation(
    env: BatchedEnv,
    policy: GuidedPolicy,
    states: Sequence[InitialState],
    seed: int,
    directory: Path,
    robot_type: str,
    origin: Mapping[str, Any],
    world: World,
) -> Evaluation:
    """Return the evaluation that `evaluate` gives, after its rollouts became a LeRobotDataset v3.

    What was interrupted is continued when it is called again.

    Args:
        env: Runs the episodes.
        policy: Acts.
        states: Held-out states, each one once.
        seed: Of the noise, as in `evaluate`.
        directory: Of the data set; must not exist.
        robot_type: What the data set calls the robot.
        origin: What the data set says about its making, besides policy, states and seed.
        world: The processes that share the work.

    Raises:
        EpisodeDataError: The directory exists, or an interrupted recording there is of other settings.
    """
    source = f"policy:{weights_hash(policy.policy)}"
    task = next(iter(env.tasks.values()))
    info = CollectionInfo(
        fps=task.hz,
        robot_type=robot_type,
        storage=default_storage(task.image_size),
        origin={
            **origin,
            "source": source,
            "guidance": policy.guidance,
            "seed": seed,
            "states": [state.hash for state in states],
        },
    )
    writer = world.first(EpisodeWriter, directory, info)
    seeds = [episode_seed(seed, state) for state in states]
    record_rollouts(env, policy, states, seeds, writer, source, peers=world)
    world.gather([])  # until the episodes of all processes are stored
    results = tuple(
        EpisodeResult(labels.task_id, labels.initial_state_hash, labels.success, length)
        for labels, length in writer.finished().values()
    )
    world.gather([])  # until all processes have read them
    world.on_main(writer.finalize)
    return Evaluation(seed, results)


def weights_hash(policy: PI0Policy) -> str:
    """Return the SHA-256, its first 16 digits, of the files that a loaded policy's weights came from."""
    if policy.source is None:
        raise ValueError("policy: expected one that was loaded from a checkpoint, found one made here")
    digest = hashlib.sha256()
    for file in (policy.source, policy.source.with_name(OWN_WEIGHTS)):
        if file.exists():
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


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


def journaled_rollout(journal: EpisodeJournal) -> RolloutFunction:
    """Return `rollout` with a memory: what the journal has does not run again, what is finished is added.

    Raises (when it runs):
        StoppedError: The process was asked to stop.
    """

    def run(
        env: BatchedEnv,
        policy: ChunkPolicy,
        states: Sequence[InitialState],
        seeds: Sequence[int],
        *,
        render_every: int | None = None,
        keep_images: bool = True,
        on_finished: Callable[[Rollout], None] | None = None,
    ) -> list[Rollout]:
        report = on_finished or (lambda _: None)
        keys = list(zip(states, seeds, strict=True))
        finished = {i: journal.read(env.tasks[s.task], s, seed) for i, (s, seed) in enumerate(keys)}
        for episode in finished.values():
            if episode is not None:
                report(episode)
        missing = [i for i, episode in finished.items() if episode is None]

        def keep(episode: Rollout) -> None:
            journal.write(episode)
            report(episode)
            if code := stop_requested():
                raise StoppedError(code)

        made = rollout(
            env,
            policy,
            [states[i] for i in missing],
            [seeds[i] for i in missing],
            render_every=render_every,
            keep_images=keep_images,
            on_finished=keep,
        )
        finished |= dict(zip(missing, made, strict=True))
        return [episode for episode in finished.values() if episode is not None]

    return run

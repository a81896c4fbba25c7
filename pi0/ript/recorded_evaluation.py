"""An evaluation whose rollouts are kept as a data set."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pi0 import PI0Policy
from pi0.pretrained import OWN_WEIGHTS
from pi0.ript.distributed import World
from pi0.ript.envs import BatchedEnv, InitialState
from pi0.ript.episodes import CollectionInfo, EpisodeWriter, default_storage
from pi0.ript.evaluate import EpisodeResult, Evaluation, episode_seed
from pi0.ript.recap.recording import record_rollouts
from pi0.ript.rollout import GuidedPolicy


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

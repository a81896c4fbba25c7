"""Evaluations that go on after a kill: an episode is simulated once, and found by all that it depends on."""

import hashlib
import json
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from pi0 import PI0Policy
from pi0.ript.envs import BatchedEnv, InitialState
from pi0.ript.evaluate import Evaluation, episode_seed, evaluate
from pi0.ript.files import hash_values, library_hash
from pi0.ript.interruption import leave_if_asked
from pi0.ript.peers import ALONE, Peers
from pi0.ript.recording import EpisodeStore, remembering
from pi0.ript.rollout import ChunkPolicy, GuidedPolicy


def evaluate_once(
    env: BatchedEnv,
    policy: ChunkPolicy,
    states: Sequence[InitialState],
    seed: int,
    store: EpisodeStore,
    *,
    num_recorded: int,
    peers: Peers = ALONE,
) -> Evaluation:
    """Return the evaluation that `evaluate` gives; episodes that the store has are not run again.

    Args:
        env: The environment that runs the episodes.
        policy: The policy to be judged.
        states: Held-out states, each one once.
        seed: The seed of the noise.
        store: Finished episodes of this policy in this environment, see `episodes_key`.
        num_recorded: Episodes per task that are kept with their images for a video.
        peers: The processes that evaluate together.

    Raises:
        StoppedError: A process was asked to stop; finished episodes are in the store.
    """
    num_finished = sum(store.has(state, episode_seed(seed, state)) for state in states)
    if num_finished and peers.rank == 0:
        print(f"{num_finished} of {len(states)} episodes are there already")  # noqa: T201
    run = remembering(store, partial(leave_if_asked, peers))
    return evaluate(env, policy, states, seed, num_recorded=num_recorded, peers=peers, run=run)


def episodes_key(env: BatchedEnv, policy: GuidedPolicy) -> str:
    """Return a hash of all that an episode depends on besides initial state and noise seed."""
    made_of = {
        "policy": policy_hash(policy.policy),
        "guidance": policy.guidance,
        "device": policy.policy.device.type,
        "suite": [type(env.suite).__name__, repr(sorted(vars(env.suite).items()))],
        "tasks": [repr(task) for task in env.tasks.values()],
        "num_slots": env.num_slots,
        "library": library_hash(),
    }
    return hash_values(made_of)


def policy_hash(policy: PI0Policy) -> str:
    """Return the first 16 digits of the SHA-256 of a policy as it is in memory: weights and conventions."""
    parts = {
        "config": policy.config.to_dict(),
        "features": policy.features.to_dict(),
        "vocabulary": sorted(policy.tokenizer.tokenizer.get_vocab().items()),
        "statistics": {
            feature: {name: np.asarray(value).tolist() for name, value in values.items()}
            for feature, values in policy.statistics.items()
        },
    }
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode())
    for name, tensor in sorted(policy.named_parameters()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]

"""What it brings that one half of the slots is simulated while the policy infers for the other.

    python benchmarks/overlap.py [--skip-libero]

Episodes per second of `rollout`, and of the same episodes without overlap: infer for all slots, then simulate
all of them. Each with one and two workers and inference threads, in turns; compared are the best settings of
both. The policy has random weights, and so many denoising steps that inference with one thread takes as long
as simulation with one worker, where overlap can bring the most. Needs two cores with nothing beside, and
LIBERO_ASSETS (or LIBERO's assets in their default place).

The ceiling is 4 / (a + b): a and b are what a second worker and a second inference thread bring alone.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import batched, product
from typing import Any

import numpy as np
import psutil
import torch
from tqdm import tqdm

from pi0 import FeatureConfig, PI0Policy, PromptTokenizer, toy_config
from pi0.config import GemmaConfig, Pi0Config
from pi0.ript.envs import BatchedEnv, InitialState, make_env
from pi0.ript.rollout import GuidedPolicy, rollout

SLOTS, CHUNK, CHUNKS = 8, 8, 4
"""Episodes at once, actions of a chunk, and chunks of an episode: its deadline."""
SUITE, TASK = "libero_object", "pick_up_the_milk_and_place_it_in_the_basket"
TARGET, SHARE_OF_CEILING = 1.25, 0.9
WIDTHS = (1024, 512, 256, 128, 64)
"""Of the language model, the largest first whose prefix leaves time for denoising."""
EPISODES = 2 * SLOTS
Setting = tuple[int, int]
"""Workers and inference threads."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--skip-libero", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    measure("Meta-World", "metaworld", ["drawer-open-v3"], options.rounds)
    if not options.skip_libero:
        libero = {"suite": SUITE, "image_size": 128, "render_size": 128, "render_quality": "fast"}
        measure("LIBERO", "libero", [TASK], options.rounds, **libero)


def measure(name: str, benchmark: str, tasks: list[str], rounds: int, **options: Any) -> None:
    """Measure one environment and print what came out."""
    with ExitStack() as stack:
        envs = {
            workers: stack.enter_context(
                make_env(
                    benchmark,
                    tasks,
                    num_slots=SLOTS,
                    num_workers=workers,
                    max_steps=CHUNK * CHUNKS,
                    **options,
                )
            )
            for workers in (1, 2)
        }
        states = envs[1].initial_states(tasks[0], "train", range(EPISODES))
        policy = equally_slow(envs[1], states[:SLOTS])
        seconds = timed(envs, policy, states, rounds)
    report(name, policy.policy.config, seconds)


def equally_slow(env: BatchedEnv, states: Sequence[InitialState]) -> GuidedPolicy:
    """Return a policy whose inference for all slots takes as long as one worker's simulation of a chunk."""
    task = env.tasks[states[0].task]
    tokenizer = PromptTokenizer.from_texts([task.instruction])
    features = FeatureConfig(
        image_keys=tuple(f"observation.images.{camera}" for camera in task.cameras),
        state_dim=task.state_dim,
        action_dim=task.action_dim,
        state_normalization="identity",
        action_normalization="identity",
    )

    def make(width: int, steps: int) -> GuidedPolicy:
        vlm, expert = (
            GemmaConfig(width=w, depth=4, mlp_dim=4 * w, num_heads=8, head_dim=32)
            for w in (width, width // 2)
        )
        sizes = {
            "max_state_dim": task.state_dim,
            "max_action_dim": task.action_dim,
            "vlm": vlm,
            "expert": expert,
        }
        changes = {**sizes, "num_inference_steps": steps, "chunk_size": CHUNK, "n_action_steps": CHUNK}
        config = toy_config(tokenizer.vocab_size, **changes)
        return GuidedPolicy(PI0Policy(config, features, tokenizer, None).eval())

    def seconds(policy: GuidedPolicy) -> tuple[float, float]:
        return min(inferred_and_simulated(env, policy, states) for _ in range(4))

    width, (first, simulation) = next(
        (width, taken)
        for width in WIDTHS
        if (taken := seconds(make(width, 1)))[0] < taken[1] / 2 or width == WIDTHS[-1]
    )
    each = (seconds(make(width, 6))[0] - first) / 5
    return make(width, max(1, 1 + round((simulation - first) / each)))


def chunks(env: BatchedEnv, policy: GuidedPolicy, observations: dict[int, Any], task: Any) -> Any:
    """Return the chunks of all slots."""
    generators = [torch.Generator().manual_seed(slot) for slot in observations]
    tasks = [task] * len(observations)
    return policy.chunks(list(observations.values()), tasks, generators, env.tasks.values())


def inferred_and_simulated(
    env: BatchedEnv, policy: GuidedPolicy, states: Sequence[InitialState]
) -> tuple[float, float]:
    """Return the seconds of a chunk in all slots: inference, and simulation."""
    observations = env.reset(dict(enumerate(states)))
    task = env.tasks[states[0].task]
    start = time.perf_counter()
    actions = chunks(env, policy, observations, task)
    middle = time.perf_counter()
    env.step_chunk(dict(enumerate(np.zeros_like(actions))))
    return middle - start, time.perf_counter() - middle


def in_turns(env: BatchedEnv, policy: GuidedPolicy, states: Sequence[InitialState]) -> None:
    """Run the episodes without overlap: infer for all slots, then simulate all."""
    task = env.tasks[states[0].task]
    for part in batched(states, SLOTS):  # all last until the deadline
        observations = env.reset(dict(enumerate(part)))
        while observations:
            actions = chunks(env, policy, observations, task)
            results = env.step_chunk(dict(zip(observations, actions, strict=True)))
            observations = {slot: r.observation for slot, r in results.items() if not r.done}


def overlapped(env: BatchedEnv, policy: GuidedPolicy, states: Sequence[InitialState]) -> None:
    """Run an episode in each slot as training and evaluation do."""
    rollout(env, policy, states, range(len(states)), keep_images=False)


def timed(
    envs: dict[int, BatchedEnv], policy: GuidedPolicy, states: Sequence[InitialState], rounds: int
) -> dict[str, dict[Setting, float]]:
    """Return the median seconds by what is done and setting; what is compared takes turns."""
    ways: dict[str, Callable[..., None]] = {"in turns": in_turns, "overlapped": overlapped}
    seconds: dict[str, dict[Setting, list[float]]] = {}
    for turn in tqdm(range(-1, rounds), unit="round", desc="episodes"):
        for (way, run), workers, threads in product(ways.items(), (1, 2), (1, 2)):
            torch.set_num_threads(threads)
            start = time.perf_counter()
            run(envs[workers], policy, states)
            taken = {way: time.perf_counter() - start}
            if way == "in turns":
                parts = inferred_and_simulated(envs[workers], policy, states[:SLOTS])
                taken |= dict(zip(("inference", "simulation"), parts, strict=True))
                half = inferred_and_simulated(envs[workers], policy, states[: SLOTS // 2])
                taken |= dict(zip(("half inference", "half simulation"), half, strict=True))
            for what, value in taken.items() if turn >= 0 else ():  # the first warms up
                seconds.setdefault(what, {}).setdefault((workers, threads), []).append(value)
    torch.set_num_threads(1)
    return {what: {s: float(np.median(x)) for s, x in by.items()} for what, by in seconds.items()}


def report(name: str, config: Pi0Config, seconds: dict[str, dict[Setting, float]]) -> None:
    """Print episodes per second by setting, and the ratio of the best ones against the target."""
    load = psutil.getloadavg()[0]
    print(
        f"\n{name}: {SLOTS} slots, {CHUNKS} chunks of {CHUNK} an episode, "
        f"{config.num_inference_steps} denoising steps, language model {config.vlm.width} wide"
    )
    print(f"({psutil.cpu_count()} cores, load {load:.1f}) episodes per second")
    print(f"{'workers, threads':20}" + "".join(f"{w}, {t}".rjust(10) for w, t in seconds["in turns"]))
    for way in ("in turns", "overlapped"):
        print(f"{way:20}" + "".join(f"{EPISODES / value:10.2f}" for value in seconds[way].values()))
    best = {way: min(seconds[way], key=seconds[way].__getitem__) for way in ("in turns", "overlapped")}
    gain = seconds["in turns"][best["in turns"]] / seconds["overlapped"][best["overlapped"]]
    simulation, inference = seconds["simulation"], seconds["inference"]
    a = np.mean([simulation[1, t] / simulation[2, t] for t in (1, 2)])
    b = np.mean([inference[w, 1] / inference[w, 2] for w in (1, 2)])
    print(
        f"inference with one thread takes {inference[1, 1] / simulation[1, 1]:.2f} of one worker's simulation"
    )
    shares = [seconds[f"half {what}"][1, 1] / seconds[what][1, 1] for what in ("inference", "simulation")]
    print("half of the slots take {:.2f} of the inference and {:.2f} of the simulation".format(*shares))
    target = min(TARGET, SHARE_OF_CEILING * 4 / (a + b))
    print(f"a second worker brings {a:.2f}, a second thread {b:.2f}: ceiling {4 / (a + b):.2f}")
    words = " and ".join(f"{way} {w} workers, {t} threads" for way, (w, t) in best.items())
    print(f"gain of overlap {gain:.2f} ({words}); target {target:.2f}: {verdict(bool(gain >= target))}")


def verdict(is_met: bool) -> str:
    """Return whether a target is met, in a word."""
    return "reached" if is_met else "MISSED"


if __name__ == "__main__":
    main()

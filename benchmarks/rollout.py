"""How fast the environments are, and what each choice costs: python benchmarks/rollout.py.

Everything that a ratio compares runs in one process, alternating, and counts CPU time, so that a
busy machine does not distort it; the scaling over workers counts wall-clock time. Needs
LIBERO_ASSETS (or LIBERO's assets in their default place); --skip-libero leaves that part out.
"""

import argparse
import contextlib
import io
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
from figures import Figures, add_figures_option
from tqdm import tqdm

from pi0.ript.envs import BatchedEnv, InitialState, make_env, make_suite

SUITE, TASK = "libero_object", "pick_up_the_milk_and_place_it_in_the_basket"
ENDLESS = 10**9
CHEAP = ("no camera", "chunked, fast")
CHEAP_TURNS = 6  # in a round
CHUNKED_TARGET, LEROBOT_TARGET, WORKERS_TARGET = 0.9, 3.0, 1.8

Runner = Callable[[np.ndarray], None]


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--chunk", type=int, default=10, help="actions executed per observation")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--suite", default=SUITE)
    parser.add_argument("--task", default=TASK)
    parser.add_argument("--skip-libero", action="store_true")
    add_figures_option(parser)
    options = parser.parse_args()
    figures = Figures()
    if not options.skip_libero:
        libero_per_core(options, figures)
        libero_workers(options, figures)
    metaworld(options.rounds, figures)
    figures.write(options.figures)


def libero_per_core(options: argparse.Namespace, figures: Figures) -> None:
    """Print steps per CPU second of LIBERO, by how images are made."""
    with contextlib.ExitStack() as stack:
        runners = our_runners(options, stack) | lerobot_runner(options, stack)
        by_round = milliseconds_per_step(runners, options)
    ms = {name: float(np.median(values)) for name, values in by_round.items()}
    size, chunk = options.image_size, options.chunk
    base = ms["no camera"]
    print(f"\nLIBERO, {options.suite}, {size} px, 2 cameras, chunks of {chunk}, one core")
    print(f"{'':38}{'CPU ms/step':>12}{'steps/s':>10}{'of no camera':>14}")
    for name, value in ms.items():
        print(f"{name:38}{value:12.2f}{1e3 / value:10.1f}{base / value:14.0%}")
    report("chunked fast, of no camera", base / ms["chunked, fast"], CHUNKED_TARGET)
    lerobot = ms["lerobot LiberoEnv, every step"]
    report("chunked fast, times lerobot", lerobot / ms["chunked, fast"], LEROBOT_TARGET)
    report("chunked stock, times lerobot", lerobot / ms["chunked, stock"], LEROBOT_TARGET)
    fast, limit = by_round["chunked, fast"], "no camera at all: 1"
    options_ = {"theirs": by_round["no camera"], "at_least": CHUNKED_TARGET, "limit": limit}
    figures.add("LIBERO step, chunked, fast images", "ms", fast, rival="without cameras", **options_)
    theirs = by_round["lerobot LiberoEnv, every step"]
    for quality in ("fast", "stock"):
        name, values = f"LIBERO step, chunked, {quality} images", by_round[f"chunked, {quality}"]
        figures.add(name, "ms", values, rival="lerobot", theirs=theirs, at_least=LEROBOT_TARGET)


def milliseconds_per_step(runners: dict[str, Runner], options: argparse.Namespace) -> dict[str, list[float]]:
    """Return the median CPU time of a step in each round, by runner.

    Runners take turns chunk by chunk; the two whose ratio matters most, which are also the
    cheapest, take six turns where the others take one.
    """
    rng = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    cheap = [(name, run) for name, run in runners.items() if name in CHEAP]
    dear = [(name, run) for name, run in runners.items() if name not in CHEAP]
    for turn in tqdm(range(-1, options.rounds), unit="round", desc="LIBERO per core"):
        for name, run in CHEAP_TURNS * cheap + dear:
            actions = rng.uniform(-0.5, 0.5, (options.chunk, 7)).astype(np.float32)
            start = time.process_time()
            run(actions)
            if turn >= 0:  # the first warms up
                seconds[name].append(time.process_time() - start)
    by_round = {name: np.reshape(values, (options.rounds, -1)) for name, values in seconds.items()}
    return {name: (1e3 * np.median(x, axis=1) / options.chunk).tolist() for name, x in by_round.items()}


def our_runners(options: argparse.Namespace, stack: contextlib.ExitStack) -> dict[str, Runner]:
    """Return what to measure of our environment; print how fast and stock images differ."""
    size, task = options.image_size, options.task
    runners: dict[str, Runner] = {}
    images = {}
    for quality in ("fast", "stock"):
        suite = make_suite(
            "libero", suite=options.suite, image_size=size, render_size=size, render_quality=quality
        )
        env = stack.enter_context(BatchedEnv(suite, task, max_steps=ENDLESS))
        state = env.initial_states(task, "heldout", [0])[0]
        images[quality] = env.reset({0: state})[0].images
        if quality == "fast":
            simulation = env.simulation(task)
            simulation.reset(state)
            runners["no camera"] = stepper(simulation)
        runners[f"chunked, {quality}"] = chunker(env, None)
        runners[f"every step, {quality}"] = chunker(env, 1)
    for key, image in images["stock"].items():
        error = np.abs(image.astype(int) - images["fast"][key])
        print(f"fast against stock, {key}: mean difference {error.mean():.2f} of 255")
    return runners


def stepper(simulation: Any) -> Runner:
    """Return a runner that only simulates."""

    def run(actions: np.ndarray) -> None:
        for action in actions:
            simulation.step(action)

    return run


def chunker(env: BatchedEnv, render_every: int | None) -> Runner:
    """Return a runner of one chunk in one slot."""

    def run(actions: np.ndarray) -> None:
        env.step_chunk({0: actions}, render_every)

    return run


def lerobot_runner(options: argparse.Namespace, stack: contextlib.ExitStack) -> dict[str, Runner]:
    """Return a runner of lerobot's environment at the same image size, as it comes."""
    from lerobot.envs.libero import LiberoEnv
    from libero.libero import benchmark

    size = options.image_size
    with contextlib.redirect_stdout(io.StringIO()):
        suite = benchmark.get_benchmark_dict()[options.suite]()
        env = LiberoEnv(
            suite,
            suite.get_task_names().index(options.task),
            options.suite,
            obs_type="pixels_agent_pos",
            observation_width=size,
            observation_height=size,
        )
        env.reset(seed=0)
        stack.callback(env.close)

    def run(actions: np.ndarray) -> None:
        for action in actions:
            env.step(action)

    return {"lerobot LiberoEnv, every step": run}


def libero_workers(options: argparse.Namespace, figures: Figures) -> None:
    """Print memory per worker and the speed of two workers against one."""
    size, task, chunk = options.image_size, options.task, options.chunk
    envs = {}
    for workers in (1, 2):
        envs[workers] = make_env(
            "libero",
            task,
            suite=options.suite,
            image_size=size,
            render_size=size,
            render_quality="fast",
            num_slots=workers,
            num_workers=workers,
            max_steps=ENDLESS,
        )
        state = envs[workers].initial_states(task, "heldout", [0])[0]
        envs[workers].reset(dict.fromkeys(range(workers), state))
    rng = np.random.default_rng(0)
    walls: dict[int, list[float]] = {1: [], 2: []}
    for _ in tqdm(range(options.rounds), unit="round", desc="LIBERO workers"):
        actions = rng.uniform(-0.5, 0.5, (chunk, 7)).astype(np.float32)
        for workers, env in envs.items():
            start = time.perf_counter()
            env.step_chunk(dict.fromkeys(range(workers), actions))
            walls[workers].append(time.perf_counter() - start)
    speed = {workers: workers * chunk / float(np.median(wall)) for workers, wall in walls.items()}
    load = psutil.getloadavg()[0]
    print(f"\nLIBERO workers, wall clock ({psutil.cpu_count()} cores, load {load:.1f})")
    print(f"1 worker {speed[1]:.1f} steps/s, 2 workers {speed[2]:.1f}: x{speed[2] / speed[1]:.2f}")
    gains = [2 * one / two for one, two in zip(walls[1], walls[2], strict=True)]
    cores = f"{min(2, psutil.cpu_count() or 1)} cores"
    figures.add(
        "LIBERO steps a second of two workers over one", "times", gains, limit=cores, at_least=WORKERS_TARGET
    )
    memory = psutil.Process(envs[1]._workers[0].process.pid).memory_full_info()
    print(f"memory per worker with one simulation: {memory.uss / 2**20:.0f} MiB of its own")
    for env in envs.values():
        env.close()


def metaworld(rounds: int, figures: Figures) -> None:
    """Print episodes per CPU second of Meta-World with random actions up to the deadline."""
    tasks, chunk, slots = ("button-press-v3", "drawer-open-v3", "plate-slide-v3"), 8, 8
    print(f"\nMeta-World, 64 px, chunks of {chunk}, one core (episodes up to the deadline)")
    with make_env("metaworld", tasks, num_slots=slots) as env:
        for task in tasks:
            states = env.initial_states(task, "train", range(slots))
            run_episodes(env, states, chunk)
            taken = []
            for _ in range(rounds):
                start = time.process_time()
                run_episodes(env, states, chunk)
                taken.append((time.process_time() - start) / slots)
            figures.add(f"Meta-World, {task}, to the deadline", "episodes/s", [1 / x for x in taken])
            seconds = float(np.mean(taken))
            steps = env.task(task).max_steps
            print(f"{task:20}{1 / seconds:8.1f} episodes/s{steps / seconds:10.0f} policy steps/s")


def run_episodes(env: BatchedEnv, states: list[InitialState], chunk: int) -> None:
    """Run one episode per slot with random actions."""
    env.reset(dict(enumerate(states)))
    rng = np.random.default_rng(0)
    live = set(range(len(states)))
    while live:
        actions = {slot: rng.uniform(-1, 1, (chunk, 4)) for slot in sorted(live)}
        live -= {slot for slot, result in env.step_chunk(actions).items() if result.done}


def report(what: str, value: float, target: float) -> None:
    """Print a ratio against its target."""
    print(f"{what}: {value:.2f} (target {target:g}: {'reached' if value >= target else 'MISSED'})")


if __name__ == "__main__":
    main()

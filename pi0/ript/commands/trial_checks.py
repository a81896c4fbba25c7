"""What `pi0-doctor` tries out: rendering, LIBERO's files, two processes that talk, a checkpoint.

What a check needs is imported in it, since an import can be what is broken.
"""

import os
import subprocess
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from pi0.ript.commands.findings import Finding, Request

NO_RENDERING = (
    "install EGL (Debian, Ubuntu: apt-get install libegl1 libegl-mesa0 libgl1 libgl1-mesa-dri), and unset "
    "MUJOCO_GL or set it to egl"
)
_PATIENCE = 60.0  # seconds, for a process that is still importing
NO_GROUP = "set GLOO_SOCKET_IFNAME=lo, and let this machine's name resolve (a line in /etc/hosts)"


def rendering(request: Request) -> list[Finding]:
    """Return whether the simulator draws an image that shows something."""
    from pi0.ript.environments import get_environment

    environment = get_environment(request.env)
    suite = environment.suite()
    simulation = suite.make(suite.select(environment.tasks)[0])
    simulation.reset(simulation.initial_state("heldout", 0))
    images = simulation.render()
    backend = os.environ.get("MUJOCO_GL", "the default")
    text = f"rendering {request.env} with MUJOCO_GL={backend}"
    black = [camera for camera, image in images.items() if image.min() == image.max()]
    if black:
        return [Finding("FAIL", f"{text}: one color from {', '.join(black)}", NO_RENDERING)]
    shapes = ", ".join(f"{camera} {image.shape[1]}x{image.shape[0]}" for camera, image in images.items())
    return [Finding("ok", f"{text}: {shapes}")]


def assets(request: Request) -> list[Finding]:
    """Return whether LIBERO's files are there, if it is LIBERO."""
    if request.env == "metaworld":
        return [Finding("ok", "assets of metaworld: in its package")]
    from pi0.ript.environments import get_environment
    from pi0.ript.envs.libero_files import FETCH_ASSETS, assets_folder

    suite = get_environment(request.env).suite()
    try:
        suite.check(suite.tasks())
    except FileNotFoundError as error:
        text = str(error).split("; fetch")[0].split(". Fetch")[0].split("; correct")[0]
        remedy = f"{FETCH_ASSETS}; or name their folder in LIBERO_ASSETS"
        return [Finding("FAIL", f"assets of {request.env}: {text}", remedy)]
    return [Finding("ok", f"assets of {request.env}: {len(suite.tasks())} tasks, {assets_folder()}")]


def process_group(request: Request) -> list[Finding]:
    """Return whether two processes of this machine exchange a number, as several GPUs or CPUs would."""
    del request
    store = _store(0, is_master=True)
    code = f"from {__name__} import exchange; exchange(1, {store.port})"
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    try:
        total = exchange(0, store.port)
        other.wait(_PATIENCE)
    finally:
        other.kill()
    if total != 3 or other.returncode != 0:
        text = f"process group: the sum of 1 and 2 is {total:g}, exit code {other.returncode}"
        return [Finding("FAIL", text, NO_GROUP)]
    return [Finding("ok", "process group: two processes exchanged a number (gloo)")]


def exchange(rank: int, port: int) -> float:
    """Return the sum of the numbers rank + 1 of two processes, over a store that listens at a port."""
    import torch
    import torch.distributed as dist

    patience = timedelta(seconds=_PATIENCE)
    dist.init_process_group("gloo", store=_store(port), rank=rank, world_size=2, timeout=patience)
    number = torch.tensor(rank + 1.0)
    dist.all_reduce(number)
    dist.barrier()
    dist.destroy_process_group()
    return number.item()


def _store(port: int, is_master: bool = False) -> Any:
    """Return where two processes of this machine meet; the master listens, at a free port for port 0."""
    import torch.distributed as dist

    return dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        "127.0.0.1", port, 2, is_master=is_master, wait_for_workers=False
    )


def checkpoint(request: Request) -> list[Finding]:
    """Return whether a checkpoint is complete and fits the environment; its weights are not read."""
    if request.checkpoint is None:
        return []
    from pi0.pretrained import require_loadable
    from pi0.ript.config.validation import attempt
    from pi0.ript.environments import get_environment
    from pi0.ript.policy_settings import TOY, require_policy_path
    from pi0.ript.starting_policy import require_fits

    require_policy_path(request.checkpoint, "--checkpoint")
    if request.checkpoint == TOY:
        return [Finding("ok", "checkpoint: toy, which is trained when it is needed")]
    path = Path(request.checkpoint).expanduser()
    described, count = require_loadable(path)
    environment, robots = get_environment(request.env), [described.features]
    if described.embodiment is None and described.embodiments:  # one of them is chosen when it acts
        robots = [robot.features for robot in described.embodiments.values()]
    wrong = [attempt(partial(require_fits, features, environment))[1] for features in robots]
    if all(wrong):
        raise ValueError(wrong[0][0])
    return [Finding("ok", f"checkpoint: {path}, {count:,} parameters, fits {request.env}")]

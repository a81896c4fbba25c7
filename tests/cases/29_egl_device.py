"""A wrong MUJOCO_EGL_DEVICE_ID ends pi0-eval with a traceback, and pi0-doctor blames a missing attribute (Dita#10, RLinf#953)."""

import os
import subprocess
import sys

from case_sets import WORK, check, end
from conftest import metaworld_policy

from pi0.ript.commands.doctor import findings
from pi0.ript.commands.findings import Request

metaworld_policy().save_pretrained(WORK / "p")
env = os.environ | {"MUJOCO_EGL_DEVICE_ID": "77", "MUJOCO_GL": "egl", "PYTHONPATH": os.pathsep.join(sys.path)}


def command(module, *words):
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, words)],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout + done.stderr


for workers in (0, 1):
    code, said = command(
        "pi0.ript.commands.evaluate",
        "--policy",
        WORK / "p",
        "--env",
        "metaworld",
        "--tasks",
        "button-press-v3",
        "--episodes",
        1,
        "--num-workers",
        workers,
        "--env-option",
        "max_episode_length=4",
        "--device",
        "cpu",
        "--output",
        WORK / "e",
    )
    check(
        "Traceback" not in said and "MUJOCO_EGL_DEVICE_ID" in said,
        f"pi0-eval, num_workers={workers}: one line that names the variable; exit code {code}, {said.count('Traceback')} tracebacks, last line {said.strip().splitlines()[-1][:150]!r}",
    )
os.environ["MUJOCO_EGL_DEVICE_ID"] = "77"
(line,) = findings("rendering", Request("metaworld"))  # the line of `pi0-doctor`
check("MUJOCO_EGL_DEVICE_ID" in str(line), f"pi0-doctor names it: {str(line)[:200]}")

end()

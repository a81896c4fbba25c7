"""Meta-World's v3 tasks: instructions, deadlines, and whose goal must be drawn."""

import importlib.util
import json
from pathlib import Path
from typing import Any


def _lerobot_tasks() -> dict[str, Any]:
    """Return what lerobot knows of Meta-World's tasks, from its file: importing lerobot takes seconds."""
    spec = importlib.util.find_spec("lerobot")
    assert spec is not None
    assert spec.origin is not None
    return json.loads((Path(spec.origin).parent / "envs/metaworld_config.json").read_text())


INSTRUCTIONS: dict[str, str] = dict(sorted(_lerobot_tasks()["TASK_DESCRIPTIONS"].items()))
"""What the robot is told, by task, in lerobot's words."""

DEADLINES: dict[str, int] = {"button-press-v3": 50, "drawer-open-v3": 72, "plate-slide-v3": 42}
"""Policy steps of two simulator steps each that a brisk operator needs; other tasks have 250,
Meta-World's own 500 simulator steps."""

GOAL_DRAWN = frozenset(name for name in INSTRUCTIONS if name.startswith(("pick-place", "push", "reach")))
"""Tasks whose goal is a bare position: a green ball shows it."""

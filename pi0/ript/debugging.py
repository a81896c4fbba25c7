"""What a run keeps besides while somebody looks for a fault: two environment variables, of requirement 001.

DEBUG_SAVE_PROCESSED=1     debug/processed-N.png, .json: what each acting policy is given first, preprocessed
PI0_DEBUG_SAVE_VIDEO=true  debug/rollouts-N.mp4: every episode that is collected to learn from

They are in the run's directory, written by the process that the directory belongs to.

Axes: b batch, c cameras, h w image size.
"""

import json
import os
from pathlib import Path

import torch
from PIL import Image

from pi0.observation import Observation

PROCESSED, VIDEO = "DEBUG_SAVE_PROCESSED", "PI0_DEBUG_SAVE_VIDEO"
_run_dir: list[Path] = []  # of this process, if it has one


def note_run(run_dir: Path) -> None:
    """Note the run's directory, and say what will be kept there."""
    for name in (PROCESSED, VIDEO):
        if is_asked_for(name) and _run_dir != [run_dir]:
            print(f"{name}: writing to {run_dir / 'debug'}")  # noqa: T201
    _run_dir[:] = [run_dir]


def is_asked_for(variable: str) -> bool:
    """Return whether an environment variable is set to 1, true, yes or on."""
    return os.environ.get(variable, "").lower() in ("1", "true", "yes", "on")


def next_file(variable: str, suffix: str) -> Path | None:
    """Return a new file to write to, None unless the environment variable asks for it here."""
    if not _run_dir or not is_asked_for(variable):
        return None
    directory, stem = _run_dir[0] / "debug", {PROCESSED: "processed", VIDEO: "rollouts"}[variable]
    directory.mkdir(exist_ok=True)
    return directory / f"{stem}-{len(list(directory.glob(f'{stem}-*{suffix}')))}{suffix}"


def save_processed(observation: Observation, task: str) -> None:
    """Write the first sample of a policy's input, if asked to: its images side by side, and the numbers."""
    file = next_file(PROCESSED, ".png")
    if file is None:
        return
    images = ((observation.images[0].float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    Image.fromarray(torch.cat([*images], dim=2).permute(1, 2, 0).numpy()).save(file)
    values = {
        "task": task,
        "state": observation.state[0].tolist(),
        "tokens": observation.tokens[0][observation.token_mask[0]].tolist(),
        "image_mask": observation.image_mask[0].tolist(),
    }
    file.with_suffix(".json").write_text(json.dumps(values, indent=1) + "\n")

"""Settings of the policy that training starts from, and what is wrong with them at first sight.

Importing this loads no torch.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pi0.checkpoint_names import HUB_NAME, INDEX, WEIGHTS
from pi0.errors import UnusableError
from pi0.ript.ranges import ROUNDING, Count, Dtype, NotNegative, Whole, one_of

TOY = "toy"
PrefixPlace = Annotated[str, one_of("device", "memory", "disk")]


@dataclass
class PolicySettings:
    """What changes in the policy that training starts from; null: as its checkpoint says."""

    config: str | None = None  # a registered configuration (pi0.registry) in place of the checkpoint's
    freeze: str | None = "none"  # vision, expert_only, lora, or a regular expression; null: the config's own
    dtype: Dtype | None = None  # of computation: float32 or bfloat16; null: as the checkpoint says
    # in which frozen weights are held; null: as they are stored, with dtype bfloat16 in that (but vision)
    frozen_dtype: Dtype | None = None
    gradient_checkpointing: bool = False  # less memory, a third more time
    n_action_steps: Count | None = None  # actions of a chunk that are executed; null: as the checkpoint says
    extra_delta_transform: bool | None = None  # openpi's LIBERO checkpoints: true for pi0, false for pi05
    statistics_path: str | None = None  # of pi0-stats or openpi's norm_stats.json, for the checkpoint's own
    embodiment: str | None = None  # tag of the robot that acts, if the policy knows several
    threads: Whole = field(default=0, metadata=ROUNDING)  # torch's, on a CPU; 0: what suits model and cores
    # keys and values of images and prompts are computed once, where vision and language are frozen, and kept
    # up to so many GiB per process; 0: none are kept
    prefix_cache_gib: NotNegative = field(default=0.0, metadata=ROUNDING)
    prefix_cache: PrefixPlace = field(default="memory", metadata=ROUNDING)  # device, memory or disk

    def changes(self) -> dict[str, Any]:
        """Return the fields of the policy's own configuration that are to be others."""
        changes = {name: getattr(self, name) for name in ("dtype", "n_action_steps")}
        changes["gradient_checkpointing"] = self.gradient_checkpointing or None
        return {name: value for name, value in changes.items() if value is not None}


def require_policy_path(path: str, field: str = "policy_path") -> None:
    """Raise ValueError with the field unless it is "toy", a checkpoint directory or a possible hub name."""
    remedy = (
        "expected a pi0 checkpoint directory (of lerobot or openpi, with config.json and model.safetensors), "
        "the name of a hub repository, or 'toy' for a small policy that is trained here on demonstrations"
    )
    place = Path(path).expanduser()
    if path == TOY:
        return
    if re.search(r"[{}<>]", path):
        raise UnusableError(f"{field}: nobody filled in the placeholder {path!r}; {remedy}")
    if place.is_dir():
        weights = INDEX if (place / INDEX).exists() else WEIGHTS
        missing = [name for name in ("config.json", weights) if not (place / name).exists()]
        if missing:
            raise UnusableError(f"{field}: {path!r} has no {' and no '.join(missing)}; {remedy}")
    elif not re.fullmatch(HUB_NAME, path):
        raise UnusableError(f"{field}: nothing at {path!r}; {remedy}")


def require_device_name(name: str) -> None:
    """Raise ValueError unless the name can be that of a device; whether it is there is not looked at."""
    if name != "auto" and not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise UnusableError(f"device: expected cpu, cuda, cuda:1, ... or auto, found {name!r}")

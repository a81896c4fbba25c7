"""What a resumed run continues from: its newest valid checkpoint, with the same settings."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, cast

from pi0.ript.checkpoint.files import CheckpointError, position, published, verify
from pi0.ript.files import flatten, hash_values

AUTO = "auto"

_FREE = (
    *("exp_name", "output_dir", "warm_start_dir", "resume", "logging.*", "distributed.*"),
    *("task.num_workers", "task.warm_start.num_workers", "training.save_freq", "training.keep_last"),
    *("training.max_nonfinite_steps", "training.profile_steps", "training.memory_limit_gb"),
)
"""Settings that cannot change a result."""

_STEPS = "training.num_train_steps"  # may be raised

_ROUNDING_ONLY = ("device", "task.num_parallel_envs")
"""Settings that change results by the rounding of other kernels and batches."""


class ChangedSettingsError(ValueError):
    """A run cannot be continued with settings that change its result."""


def find_checkpoint(run_dir: Path, resume: str | None) -> Path | None:
    """Return the checkpoint to continue from, None to start from the beginning.

    Args:
        run_dir: The run.
        resume: "auto" for the newest valid one, a corrupt one is named and passed over; a path for exactly
            that one; None for none.

    Raises:
        CheckpointError: The one at the path is not valid, or none of the run is.
    """
    if resume is None:
        return None
    if resume != AUTO:
        if position(Path(resume).resolve()) is None:
            raise CheckpointError(
                f"resume: expected 'auto' or the path of a checkpoint-N directory, found {resume!r}; "
                f"the run has {[path.name for path in published(run_dir)]}"
            )
        verify(Path(resume))
        return Path(resume)
    candidates = published(run_dir)[::-1]
    for path in candidates:
        try:
            verify(path)
        except CheckpointError as error:
            print(f"not used: {error}")  # noqa: T201
            continue
        print(f"resume: continuing from {path}")  # noqa: T201
        return path
    if candidates:
        raise CheckpointError(
            f"resume: none of the {len(candidates)} checkpoints in {run_dir} is valid, see above; start "
            "again without --resume (the directory is kept under another name)"
        )
    print(f"resume: no checkpoint in {run_dir} yet, starting from the beginning")  # noqa: T201
    return None


def settings(config: Any) -> dict[str, Any]:
    """Return a configuration as it looks when it is read back from JSON."""
    values = asdict(cast("Any", config)) if is_dataclass(config) else dict(config)
    return json.loads(json.dumps(values))


def settings_hash(config: Any) -> str:
    """Return a hash of the settings that have an influence on episodes."""
    values = {
        k: v
        for k, v in flatten(settings(config), into_lists=True).items()
        if not _is_any(k, (*_FREE, *_ROUNDING_ONLY, _STEPS))
    }
    return hash_values(values)


def require_same_settings(
    saved: Mapping[str, Any],
    now: Mapping[str, Any],
    where: Path,
    free: Sequence[str] = _FREE,
    rounding_only: Sequence[str] = _ROUNDING_ONLY,
    remedy: str = "start a new run with another exp_name and without --resume",
) -> None:
    """Raise ChangedSettingsError if a setting differs that changes the result by more than rounding.

    Args:
        saved: Settings of the run.
        now: Settings that are to continue it.
        where: Its checkpoint, for the message.
        free: Patterns of settings that cannot change a result.
        rounding_only: Settings that change no more than rounding; a change is printed.
        remedy: What else to do than to set them back.
    """
    old, new = flatten(saved, into_lists=True), flatten(now, into_lists=True)
    changed = {key: f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in old | new}
    changed = {k: line for k, line in changed.items() if old.get(k) != new.get(k) and not _is_any(k, free)}
    if _STEPS in changed and new[_STEPS] > old[_STEPS]:
        del changed[_STEPS]
    for key in rounding_only:
        if key in changed:
            print(f"resume: {changed.pop(key)}; the results are equal up to rounding")  # noqa: T201
    if changed:
        lines = "".join(f"\n  {line}" for line in changed.values())
        raise ChangedSettingsError(
            f"resume: these settings differ from those of {where}, saved -> now, and would change the result:"
            f"{lines}\nSet them back, or {remedy}"
        )


def _is_any(key: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(key, pattern) for pattern in patterns)

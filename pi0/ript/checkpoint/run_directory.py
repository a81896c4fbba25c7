"""The directory of a run that can be continued."""

from functools import partial
from pathlib import Path
from typing import Any

from pi0.ript.checkpoint.files import published
from pi0.ript.checkpoint.resuming import find_same_run
from pi0.ript.config.loading import present_settings
from pi0.ript.results import lock_directory, new_run_directory

EPISODES = "episodes"
"""The directory, in that of a run, of the episodes that it need not run again."""


def open_run_directory(config: Any) -> tuple[Path, Path | None]:
    """Return the run's directory, from now on this process's own, and the checkpoint to continue from.

    Without `config.resume`, or if no run that can be continued left it, the directory is a new, empty one
    (what was there is moved aside), and the checkpoint None unless a path was given.

    Args:
        config: With `output_dir`, `exp_name` and `resume`.

    Raises:
        RunInUseError: A live process has the directory.
        SnapshotError: The checkpoint asked for, or every one of the run, is not valid.
        ChangedSettingsError: It was made with settings that would have another result.
    """
    path = Path(config.output_dir) / config.exp_name
    lock_directory(path)
    can_continue = (path / EPISODES).exists() or published(path)  # a run of rungs 8 to 12 has neither
    if config.resume is None or not can_continue:
        new_run_directory(path)
        (path / EPISODES).mkdir()
    read = partial(present_settings, schema=type(config))
    return path, find_same_run(path, config, config.resume, read=read)

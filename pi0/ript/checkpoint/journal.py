"""A journal of finished episodes, one file each, so that an interrupted run does not run them again."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pi0.ript.checkpoint.files import SnapshotError
from pi0.ript.envs import InitialState, Task
from pi0.ript.envs.initial_state import UNREADABLE
from pi0.ript.episode import Rollout, without_images

_IMAGES, _CHUNKS = "images/", "chunks/"


class EpisodeJournal:
    """The episodes in a directory, each as it was run; see `pi0.ript.recording.EpisodeStore`."""

    needs_images = False

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def files(self) -> list[Path]:
        """Return the files of all episodes."""
        return sorted(self.directory.glob("*.npz"))

    def write(self, episode: Rollout) -> None:
        """Add an episode; when this returns it is on the disk."""
        path = self._path(episode.initial_state, episode.seed)
        partial = path.with_suffix(".partial")
        arrays = {name: getattr(episode, name) for name in ("states", "actions", "observed")}
        arrays |= {f"{_IMAGES}{camera}": frames for camera, frames in episode.images.items()}
        arrays |= {f"{_CHUNKS}{name}": values for name, values in episode.chunks.items()}
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                np.savez(file, success=np.array(episode.success), **arrays)
                file.flush()
                os.fsync(file.fileno())
            partial.rename(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise SnapshotError(
                f"{path}: the finished episode could not be written ({error}); make room, then continue the "
                "run with --resume"
            ) from error

    def has(self, state: InitialState, seed: int) -> bool:
        """Return whether an episode is there."""
        return self._path(state, seed).exists()

    def read(self, task: Task, state: InitialState, seed: int, with_images: bool = True) -> Rollout | None:
        """Return an episode bit for bit; None if it or its images are missing, or damaged, which is said."""
        path = self._path(state, seed)
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}  # checks every CRC
                episode = Rollout(
                    task=task,
                    initial_state=state,
                    seed=seed,
                    success=bool(arrays.pop("success")),
                    **{name: arrays.pop(name) for name in ("states", "actions", "observed")},
                    images=_below(_IMAGES, arrays),
                    chunks=_below(_CHUNKS, arrays),
                )
            if not with_images:
                return without_images(episode)
            return episode if episode.images else None
        except FileNotFoundError:
            return None
        except UNREADABLE as error:
            print(f"{path} is damaged ({type(error).__name__}: {error}): its episode is run again")  # noqa: T201
            return None

    def _path(self, state: InitialState, seed: int) -> Path:
        return self.directory / f"{state.hash[:16]}-{seed}.npz"


def _below(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays of one kind, by their names without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}

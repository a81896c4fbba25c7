"""Batches of training windows from several data sets, their actions resampled by OpenTau's rules.

Axes: n frame of a set, b window of the batch, h action horizon, a action dim.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64, UInt8
from torch.utils.data import Dataset

from pi0.embodiment import EMBODIMENT
from pi0.features import ACTION, STATE, FeatureConfig
from pi0.ript.data.frame_set import FrameSet
from pi0.ript.data.images import letterbox
from pi0.ript.data.records import EpisodeDataError
from pi0.ript.data.settings import MixtureSettings


class MixtureWindows(Dataset[dict[str, Any]]):
    """Turns draws of a `MixtureOrder` into batches, in whatever process."""

    def __init__(
        self,
        sets: Sequence[FrameSet],
        features: FeatureConfig,
        chunk_size: int,
        settings: MixtureSettings | None = None,
        augmentation_seed: int | None = None,
        robots: Sequence[tuple[int, FeatureConfig]] | None = None,
    ) -> None:
        """Prepare; without `augmentation_seed` images stay as they are, without settings everything does.

        `robots`: id and features of the robot of each set, if a batch holds several; `features` are then
        what these have in common (`Embodiments.joint_features`).

        Raises:
            EpisodeDataError: States, actions or images of a set do not fit the policy or the other sets.
        """
        settings = settings or MixtureSettings()
        self._sets, self.settings, self._features = list(sets), settings, features
        self._seed = augmentation_seed if settings.augmentation.enable else None
        if self._seed is not None:
            # Not in a process that is forked to read ahead: W&B hooks into imports, and hangs in a fork.
            from pi0.ript.data.augmentation import augment  # torchvision takes seconds to import

            self._augment = augment
        self._chunk_size = chunk_size
        self._offsets = [chunk_offsets(chunk_size, s.fps, settings.action_freq) for s in sets]
        self._ends = [s.ends for s in sets]
        self._firsts = np.cumsum([0, *(s.num_frames for s in sets)])
        self._lacking = {c for c in features.present_cameras if any(c not in s.images for s in sets)}
        self._ids = None if robots is None else np.array([number for number, _ in robots])
        for frames, (_, own) in zip(sets, robots or [(0, features)] * len(sets), strict=True):
            _require_widths(frames, own)
        self._sizes = _image_sizes(sets, features, settings.image_size)

    def __getitem__(self, draws: Int64[np.ndarray, "b 3"]) -> dict[str, Any]:
        """Return the batch of some draws (data set, frame, visit), with the keys of `PI0Policy.loss`.

        Also `window`: the number of the frame among all frames of all sets, one set after the other;
        `dataset_index`; `{camera}_is_pad` of every camera that some set lacks; and with several robots
        `embodiment_id`, states and actions zero-padded to the widest.
        """
        count, features, numbers = len(draws), self._features, draws[:, 0].tolist()
        images = {camera: np.empty((count, *size, 3), np.uint8) for camera, size in self._sizes.items()}
        for place in np.lexsort((draws[:, 1], draws[:, 0])).tolist():  # neighbours are read one by one
            for camera, image in self._images(*draws[place].tolist()).items():
                images[camera][place] = image
        states = np.zeros((count, features.state_dim), np.float32)
        actions = np.zeros((count, self._chunk_size, features.action_dim), np.float32)
        is_pad = np.empty((count, self._chunk_size), bool)
        for number in set(numbers):
            own, frames = np.flatnonzero(draws[:, 0] == number), self._sets[number]
            rows = draws[own, 1]
            states[own, : frames.states.shape[1]] = frames.states[rows]
            actions[own, :, : frames.actions.shape[1]], is_pad[own] = action_chunks(
                frames.actions,
                self._ends[number],
                rows,
                self._offsets[number],
                self.settings.vector_resample_strategy,
            )
        arrays: dict[str, np.ndarray] = {
            **images,
            **{f"{camera}_is_pad": np.array([camera not in self._sets[number].images for number in numbers])
               for camera in sorted(self._lacking)},
            STATE: states,
            ACTION: actions,
            f"{ACTION}_is_pad": is_pad,
            "window": self._firsts[draws[:, 0]] + draws[:, 1],
            "dataset_index": draws[:, 0].copy(),
        }  # fmt: skip
        if self._ids is not None:
            arrays[EMBODIMENT] = self._ids[draws[:, 0]]
        tasks = [self._sets[number].instruction(row) for number, row, _ in draws.tolist()]
        return {key: torch.from_numpy(values) for key, values in arrays.items()} | {"task": tasks}

    def batch(self, windows: Int64[np.ndarray, " b"]) -> dict[str, Any]:
        """Return the batch of some windows, by their numbers."""
        sets = np.searchsorted(self._firsts, windows, side="right") - 1
        return self[np.stack([sets, windows - self._firsts[sets], np.zeros_like(windows)], axis=1)]

    def _images(self, number: int, row: int, visit: int) -> dict[str, UInt8[np.ndarray, "_ _ 3"]]:
        images = {camera: self._image(self._sets[number], camera, row) for camera in self._sizes}
        if self._seed is None:
            return images
        key = (self._seed, int(self._firsts[number]) + row, visit)
        return self._augment(images, self.settings.augmentation, key)

    def _image(self, frames: FrameSet, camera: str, row: int) -> UInt8[np.ndarray, "_ _ 3"]:
        """Return the image at the size that all have in a batch; black where the set lacks the camera."""
        size = self._sizes[camera]
        if camera not in frames.images:
            return np.zeros((*size, 3), np.uint8)
        image = frames.images[camera][row]
        return image if image.shape[:2] == size else letterbox(image, size[0], self._features.resize)


def _require_widths(frames: FrameSet, features: FeatureConfig) -> None:
    for key, values, dim in (
        (STATE, frames.states, features.state_dim),
        (ACTION, frames.actions, features.action_dim),
    ):
        if values.shape[1] != dim:
            raise EpisodeDataError(
                f"{frames.name}: {key}: expected the policy's {dim} numbers, found {values.shape[1]}; name "
                "another column in data_features_name_mapping"
            )


def _image_sizes(
    sets: Sequence[FrameSet], features: FeatureConfig, image_size: int | None
) -> Mapping[str, tuple[int, int]]:
    """Return height and width of each camera's images in a batch."""
    sizes = {
        camera: {size for frames in sets for size in frames.image_sizes(camera)}
        for camera in features.present_cameras
    }
    nowhere = [camera for camera, found in sizes.items() if not found]
    if nowhere:
        raise EpisodeDataError(
            f"cameras {nowhere}: no data set has them; start from a policy without them, or have pi0-train "
            "make one (null in the data_features_name_mapping of every set)"
        )
    if image_size is not None:
        return dict.fromkeys(sizes, (image_size, image_size))
    different = {camera: sorted(found) for camera, found in sizes.items() if len(found) > 1}
    if different:
        raise EpisodeDataError(
            f"images: expected the same size in all data sets, found {different} (height, width); set "
            "image_size to the policy's"
        )
    return {camera: next(iter(found)) for camera, found in sizes.items()}


def chunk_offsets(chunk_size: int, fps: float, action_freq: float | None) -> Float64[np.ndarray, " h"]:
    """Return where the actions of a chunk lie after its first frame, in frames of the data set."""
    steps = np.arange(chunk_size, dtype=np.float64)
    return steps if action_freq is None else steps / action_freq * fps


def action_chunks(
    actions: Float32[np.ndarray, "n a"],
    ends: Int64[np.ndarray, " n"],
    rows: Int64[np.ndarray, " b"],
    offsets: Float64[np.ndarray, " h"],
    strategy: str,
) -> tuple[Float32[np.ndarray, "b h a"], Bool[np.ndarray, "b h"]]:
    """Return the actions from some frames on, and where they lie beyond the episode (its last is repeated).

    Args:
        actions: Of all frames.
        ends: The frame behind the episode of each frame.
        rows: Where the chunks begin.
        offsets: See `chunk_offsets`.
        strategy: "nearest": the action at the rounded place, halves to the even frame; "linear": between the
            actions before and behind it.
    """
    places = rows[:, None] + offsets
    inside = np.minimum(places, ends[rows][:, None] - 1)
    if strategy == "nearest":
        return actions[np.round(inside).astype(np.int64)], places >= ends[rows][:, None]
    before = np.floor(inside).astype(np.int64)
    share = (inside - before).astype(np.float32)[..., None]
    behind = np.ceil(inside).astype(np.int64)
    return (1 - share) * actions[before] + share * actions[behind], places >= ends[rows][:, None]

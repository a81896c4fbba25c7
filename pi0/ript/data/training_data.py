"""Batches for supervised training and validation on a mixture of data sets, read ahead by processes."""

import multiprocessing.queues
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch.utils.data import DataLoader

from pi0.features import FeatureConfig
from pi0.ript.data.cache import ImageCache
from pi0.ript.data.frame_set import FrameSet
from pi0.ript.data.mixture import MixtureOrder, validation_episodes
from pi0.ript.data.reader import open_set, require_names
from pi0.ript.data.records import EpisodeDataError
from pi0.ript.data.settings import MixtureSettings, check_mixture, mixture_weights
from pi0.ript.data.windows import MixtureWindows
from pi0.ript.interruption import deaf_children
from pi0.ript.peers import ALONE, Peers, share
from pi0.ript.progress import progress_bar

_READER = "DataLoader worker"
"""With what torch begins to tell that one is lost."""


class TrainingBatches:
    """Batches of one process, of an endless global order, which `state_dict` lets continue exactly.

    Every process takes its part of each global batch of `batch_size * peers.size` draws; the order does not
    depend on the number of processes or of workers.
    """

    def __init__(self, windows: MixtureWindows, order: MixtureOrder, batch_size: int, peers: Peers) -> None:
        self._windows, self._order = windows, order
        self._batch_size, self._rank = batch_size, peers.rank
        self._global_batch_size = batch_size * peers.size
        self._position = 0
        self._ahead: Iterator[dict[str, Any]] | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Return itself: there is one position."""
        return self

    def __next__(self) -> dict[str, Any]:
        """Return the next batch, on the CPU."""
        if self._ahead is None:
            first = self._position + self._rank * self._batch_size
            draws = _endless(self._order, first, self._batch_size, self._global_batch_size)
            self._ahead = _read(self._windows, draws)
        batch = next(self._ahead)
        self._position += self._global_batch_size
        return batch

    @property
    def epoch(self) -> float:
        """Passes over the data so far, of all processes together."""
        return self._position / self._order.epoch_length

    def state_dict(self) -> dict[str, Any]:
        """Return the position behind the last batch returned, the same in all processes."""
        return {"position": self._position, "order": self._order.fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was called, with as many processes and workers as there are now.

        Raises:
            ValueError: The data, the weights or the seed are not those of the state.
        """
        if state["order"] != self._order.fingerprint:
            raise ValueError(
                f"data position: expected the order {self._order.fingerprint} of these data sets, weights "
                f"and seed, found {state['order']}; resume with those of the interrupted run, or begin anew"
            )
        self._position = int(state["position"])
        self.close()

    def close(self) -> None:
        """End the processes that read ahead; the next batch starts them again."""
        self._ahead = None


class ValidationBatches:
    """One process's share of the validation frames, each frame once; the same in every pass.

    Shares can differ by a batch, and the last batch can be short: weigh by samples, then sum over processes.
    """

    def __init__(self, windows: MixtureWindows, order: MixtureOrder, batch_size: int, peers: Peers) -> None:
        self._windows = windows
        draws = order.draws(0, order.epoch_length)
        batches = [draws[i : i + batch_size] for i in range(0, len(draws), batch_size)]
        self._batches = share(batches, peers)
        self.num_frames = len(draws)
        """Of all processes."""

    def __len__(self) -> int:
        """Return the number of batches of this process."""
        return len(self._batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the batches of one pass."""
        return _read(self._windows, self._batches)


@dataclass(frozen=True)
class TrainingData:
    """The two sides of a mixture; no episode is on both."""

    sets: list[FrameSet]
    """By `dataset_index`."""
    train: TrainingBatches
    validation: ValidationBatches | None
    """None without validation episodes."""
    training_rows: list[Int64[np.ndarray, " _"]]
    """Frames of each set that are trained on, for statistics."""
    num_kept: int
    """Frames whose images stay in memory once they are decoded."""

    def __str__(self) -> str:
        """Return what is read, in one line."""
        count, held_out = (
            sum(map(len, self.training_rows)),
            0 if self.validation is None else self.validation.num_frames,
        )
        return (
            f"data: {count} frames of {len(self.sets)} data sets to train on, {held_out} to validate on; "
            f"images of {self.num_kept} stay in memory once they are decoded (dataset_mixture.cache_gib)"
        )


def open_sets(settings: MixtureSettings, cameras: Sequence[str] | None = None) -> list[FrameSet]:
    """Return the data sets of a mixture; `cameras` as in `open_set`.

    Raises:
        ValueError: A setting is wrong; or sets are not there, or cannot be believed (`EpisodeDataError`, with
            the faults of all of them).
    """
    check_mixture(settings)
    sets, faults = [], []
    for dataset in progress_bar(settings.datasets, unit="data set", desc="open", leave=False, delay=5):
        try:
            sets.append(open_set(dataset, cameras))
        except EpisodeDataError as error:
            faults.append(str(error))
    if faults:
        raise EpisodeDataError("\n".join(faults))
    _require_disjoint(sets)
    return sets


def make_training_data(
    settings: MixtureSettings,
    features: FeatureConfig,
    chunk_size: int,
    batch_size: int,
    peers: Peers = ALONE,
    seed: int = 0,
    usable: Sequence[Bool[np.ndarray, " _"]] | None = None,
    sets: Sequence[FrameSet] | None = None,
    robots: Sequence[tuple[int, FeatureConfig]] | None = None,
) -> TrainingData:
    """Return what a policy is trained and validated on.

    Args:
        settings: Data sets, weights, split, resampling, augmentation.
        features: Of the policy: cameras and widths. Actions stay raw: the policy makes them relative.
        chunk_size: Actions of a sample.
        batch_size: Of this process.
        peers: The processes that train together.
        seed: Of order and augmentation.
        usable: Which frames of each set, by row, may be drawn; None: all.
        sets: What `open_sets` returned for the settings; None: they are opened now.
        robots: As `MixtureWindows` takes them; None: all sets are of one.

    Raises:
        ValueError: A setting is wrong, or a data set is not there or does not fit (`EpisodeDataError`).
    """
    opened = list(sets) if sets is not None else open_sets(settings, features.present_cameras)
    for dataset, frames in zip(settings.datasets, opened, strict=True):
        require_names(dataset, features.present_cameras, frames.name)
    training, validation = split_rows(settings, opened)
    if usable is not None:
        training, validation = (
            [rows[mask[rows]] for rows, mask in zip(side, usable, strict=True)]
            for side in (training, validation)
        )
    windows = MixtureWindows(opened, features, chunk_size, settings, seed, robots)
    order = MixtureOrder(training, mixture_weights(settings), seed)
    train = TrainingBatches(windows, order, batch_size, peers)
    held_out = None
    if any(len(rows) for rows in validation):
        plain = MixtureWindows(opened, features, chunk_size, settings, robots=robots)
        held_out_order = MixtureOrder(validation, None, settings.val_split_seed)
        held_out = ValidationBatches(plain, held_out_order, batch_size, peers)
    drawn = [np.union1d(*sides) for sides in zip(training, validation, strict=True)]
    visits = [count / max(len(rows), 1) for count, rows in zip(order.counts.tolist(), training, strict=True)]
    cache = ImageCache(settings.cache_gib, peers)
    often_first = sorted(range(len(opened)), key=lambda number: -visits[number])
    num_kept = sum(opened[number].keep_images(cache, drawn[number]) for number in often_first)
    return TrainingData(opened, train, held_out, training, num_kept)


def is_of_a_reader(error: RuntimeError) -> bool:
    """Return whether torch raised an error, in whatever line, because a process that reads data has ended."""
    return str(error).startswith(_READER)


def split_rows(
    settings: MixtureSettings, sets: Sequence[FrameSet]
) -> tuple[list[Int64[np.ndarray, " _"]], list[Int64[np.ndarray, " _"]]]:
    """Return the frames of each set that are for training, and those for validation."""
    training, validation = [], []
    for dataset, frames in zip(settings.datasets, sets, strict=True):
        own = dataset.val_split_ratio
        ratio = settings.val_split_ratio if own is None else own
        held_out = np.zeros(len(frames.episodes), bool)
        held_out[frames.selected] = validation_episodes(
            frames.episodes[frames.selected], ratio, settings.val_split_seed
        )
        training.append(frames.rows(frames.selected & ~held_out))
        validation.append(frames.rows(held_out))
    return training, validation


def _require_disjoint(sets: Sequence[FrameSet]) -> None:
    """Refuse episodes that are in the mixture twice: they could be on both sides of the split."""
    seen: dict[tuple[str, int], int] = {}
    for number, frames in enumerate(sets):
        for episode in frames.episodes[frames.selected].tolist():
            other = seen.setdefault((frames.name, episode), number)
            if other != number:
                raise EpisodeDataError(
                    f"datasets[{other}] and datasets[{number}] both hold episode {episode} of {frames.name}; "
                    "give it to one of them (episodes, excluded_episodes), with weights to draw it more often"
                )


def _endless(order: MixtureOrder, first: int, size: int, stride: int) -> Iterator[Int64[np.ndarray, "_ 3"]]:
    """Yield the draws of one process, without a reference to who asks, so that its workers end with it."""
    for place in count(first, stride):
        yield order.draws(place, place + size)


def _read(windows: MixtureWindows, draws: Any) -> Iterator[dict[str, Any]]:
    reading = windows.settings
    loader = DataLoader(
        windows,
        batch_size=None,  # the draws are those of whole batches
        sampler=draws,
        num_workers=reading.num_workers,
        prefetch_factor=reading.prefetch_factor if reading.num_workers else None,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # its draws are not used; the global generator stays as it is
        worker_init_fn=_end_of_a_lost_batch,
    )
    with deaf_children():
        batches = iter(loader)
    return _received(batches) if reading.num_workers else batches


def _received(batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield what processes have read; one that ends while it hands a batch over is an error of a reader."""
    try:
        yield from batches
    except (EOFError, OSError) as error:
        if str(error).startswith("Caught"):  # what the reading itself raised, with its traceback
            raise
        raise RuntimeError(f"{_READER} ended while it handed a batch over ({error})") from error


def _end_of_a_lost_batch(_worker: int) -> None:
    """Have a process that reads end where it cannot hand a batch over: the trainer would wait forever."""

    def end(error: Exception, _batch: object) -> None:
        said = f"a batch could not be handed over ({error}): shared memory (/dev/shm) may be too small\n"
        os.write(2, said.encode())
        os._exit(1)

    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(end)  # pyright: ignore[reportAttributeAccessIssue]

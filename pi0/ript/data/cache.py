"""What stays in memory of a data set's files: decoded images, for all processes; open files, for one.

Axes: n frame of a set, k frame that is kept, h w image size.
"""

import mmap
import os
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from pi0.ript.peers import ALONE, Peers


class ImageCache:
    """A budget of memory for decoded images, which the processes that are forked later share.

    The memory is anonymous, so that /dev/shm does not limit it, and is taken page by page as images come.
    Nothing gives way to something else: where frames are drawn uniformly, the first ones are as good as any.
    """

    def __init__(self, gib: float, peers: Peers = ALONE) -> None:
        """Take this process's share of what a machine may use."""
        self._left = int(gib * 2**30) // int(os.environ.get("LOCAL_WORLD_SIZE", peers.size))

    def reserve(
        self, sizes: list[tuple[int, int]], num_frames: int, rows: Int64[np.ndarray, " _"]
    ) -> list["KeptImages"]:
        """Return room for the images of as many of the rows of a set as fit, by camera.

        Args:
            sizes: Height and width of each camera's images.
            num_frames: Of the set.
            rows: The frames that are worth keeping, the first ones before the others.
        """
        frame = sum(_num_bytes(size) for size in sizes)
        count = min(len(rows), self._left // frame) if frame else 0
        self._left -= count * frame
        return [KeptImages(num_frames, rows[:count], size) for size in sizes] if count else []

    def release(self, kept: "KeptImages") -> None:
        """Take back the room of images that nobody reads any more."""
        self._left += kept.num_kept * _num_bytes(kept.size)


def _num_bytes(size: tuple[int, int]) -> int:
    """Return what an image takes, and the mark that it is there."""
    return 3 * size[0] * size[1] + 1


class KeptImages:
    """Room for the images of one camera; whichever process decodes one first puts it here for all."""

    def __init__(self, num_frames: int, rows: Int64[np.ndarray, " k"], size: tuple[int, int]) -> None:
        height, width = self.size = size
        self.num_kept = len(rows)
        self._place = np.full(num_frames, -1, np.int32)
        self._place[rows] = np.arange(len(rows))
        pixels = mmap.mmap(-1, len(rows) * height * width * 3)
        self._pixels = np.frombuffer(pixels, np.uint8).reshape(len(rows), height, width, 3)
        self._is_there = np.frombuffer(mmap.mmap(-1, len(rows)), np.uint8)

    def get(self, row: int) -> UInt8[np.ndarray, "h w 3"] | None:
        """Return the image of a frame, None if it is not kept or not decoded yet."""
        place = self._place[row]
        return self._pixels[place] if place >= 0 and self._is_there[place] else None

    def lacks(self, row: int) -> bool:
        """Return whether a frame has room here and is not decoded yet."""
        place = self._place[row]
        return bool(place >= 0 and not self._is_there[place])

    def put(self, row: int, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """Keep an image if the frame has room here; one of another size than the camera's is not kept."""
        if self.lacks(row) and image.shape == self._pixels.shape[1:]:
            place = self._place[row]
            self._pixels[place] = image
            self._is_there[place] = 1  # last: who sees it finds all pixels


class Recent[K: Hashable, V]:
    """The values that were used last, in this process: open files do not survive a fork, nor do decoders."""

    def __init__(
        self,
        limit: float,
        size: Callable[[V], float] | None = None,
        close: Callable[[V], object] | None = None,
    ) -> None:
        """Keep values of up to `limit` in all, one at least; what is not kept any more is closed.

        Args:
            limit: In the unit of `size`.
            size: Of a value; without it each counts one.
            close: Called with a value that is not kept any more.
        """
        self._limit, self._size, self._close = limit, size, close
        self._values: OrderedDict[K, V] = OrderedDict()
        self._total = 0.0
        self._process = os.getpid()
        self._inherited: list[Any] = []

    def get(self, key: K, make: Callable[[], V]) -> V:
        """Return the value of a key, made now if it is not kept."""
        if self._process != os.getpid():
            # Not closed: that would wait for threads of the other process.
            self._inherited.append(self._values)
            self._values, self._total, self._process = OrderedDict(), 0.0, os.getpid()
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = self._values[key] = make()
        self._total += self._size_of(value)
        while self._total > self._limit and len(self._values) > 1:
            oldest = self._values.popitem(last=False)[1]
            self._total -= self._size_of(oldest)
            if self._close is not None:
                self._close(oldest)
        return value

    def _size_of(self, value: V) -> float:
        return 1.0 if self._size is None else self._size(value)

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs: nothing that is open."""
        return {**vars(self), "_values": OrderedDict(), "_total": 0.0, "_inherited": []}

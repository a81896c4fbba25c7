"""Bytes of arrays between two processes: through memory that both see, not through a pipe."""

import mmap
import os
import tempfile
from collections.abc import Sequence
from itertools import accumulate, pairwise


class SharedBytes:
    """A file without a name, in memory if it can be; it ends with the last process that has it open."""

    def __init__(self, file: int | None = None) -> None:
        """Make the file, or take the descriptor of one that the parent made."""
        self.file = _new_file() if file is None else file
        self._map: mmap.mmap | None = None

    def write(self, buffers: Sequence[memoryview]) -> list[int]:
        """Store buffers one behind the other, in place of what was there; return their sizes.

        Raises:
            OSError: There is no memory left for them.
        """
        sizes = [buffer.nbytes for buffer in buffers]
        if sum(sizes) > os.fstat(self.file).st_size:
            self._grow(sum(sizes))
        for buffer, (begin, end) in zip(buffers, _places(sizes), strict=True):
            self._mapped(end)[begin:end] = buffer
        return sizes

    def read(self, sizes: Sequence[int]) -> list[bytearray]:
        """Return copies of the buffers that have these sizes."""
        return [bytearray(self._mapped(end)[begin:end]) for begin, end in _places(sizes)]

    def close(self) -> None:
        """Give up this process's part of it."""
        if self._map is not None:
            self._map.close()
        os.close(self.file)

    def _grow(self, size: int) -> None:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self.file, 0, size)  # an error now, not a signal where it is written
        else:
            os.ftruncate(self.file, size)

    def _mapped(self, size: int) -> mmap.mmap:
        """Return the file's memory, at least so much of it."""
        if self._map is None or len(self._map) < size:
            if self._map is not None:
                self._map.close()
            self._map = mmap.mmap(self.file, max(os.fstat(self.file).st_size, 1))
        return self._map


def _places(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Return where each of the buffers that has a size begins and ends."""
    return list(pairwise(accumulate(sizes, initial=0)))


def _new_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("pi0-arrays")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())

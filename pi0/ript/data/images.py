"""Images of a data set by frame, decoded from PNG or video when they are asked for.

Axes: n frame of the set, e episode, g row of a row group, k frame that is asked for, h w image size.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt8

from pi0.ript.data.cache import KeptImages, Recent
from pi0.ript.data.checks import LEAVE_OUT
from pi0.ript.data.encoding import decode_image
from pi0.ript.data.footage import NOWHERE, Footage
from pi0.ript.data.records import EpisodeDataError
from pi0.ript.data.tables import FETCH_AGAIN, UNREADABLE, Fault, FrameTable, reason_of
from pi0.ript.data.video import Video

type Rows = int | slice | Sequence[int] | np.ndarray
_OPEN_VIDEOS = Recent[tuple[Path, float], Video](
    100.0, close=Video.close
)  # of this process, whatever set they are of
_ENCODED_BYTES = 2.0**25  # of one camera's images that a process holds as they are in the file


class ImageColumn(ABC):
    """The images of one camera: `column[rows]` is what an array of all of them would give."""

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, num_frames: int, sizes: Sequence[tuple[int, int]]) -> None:
        """Prepare; `sizes` are the heights and widths that there are."""
        self.sizes = tuple(sizes)
        side = max(max(size) for size in sizes)
        self.shape = (num_frames, *(self.sizes[0] if len(sizes) == 1 else (side, side)), 3)
        self.kept: KeptImages | None = None
        """Where decoded images are kept; None: nowhere."""

    def __len__(self) -> int:
        """Return the number of frames of the set."""
        return self.shape[0]

    def __getitem__(self, rows: Rows) -> UInt8[np.ndarray, "*k h w 3"]:
        """Return the image of one frame at its own size, or those of several at one size.

        Raises:
            EpisodeDataError: An image is damaged; the message names file and row or frame.
        """
        if isinstance(rows, int | np.integer):
            return self._image(range(len(self))[int(rows)])
        chosen = np.arange(len(self))[rows]
        images = np.empty((len(chosen), *self.shape[1:]), np.uint8)
        for place in np.argsort(chosen, kind="stable").tolist():  # neighbours are read one after the other
            image = self._image(int(chosen[place]))
            images[place] = image if image.shape == self.shape[1:] else self._at_one_size(image)
        return images

    def _at_one_size(self, image: UInt8[np.ndarray, "_ _ 3"]) -> UInt8[np.ndarray, "h w 3"]:
        height, width = self.shape[1:3]
        if height != width:
            raise EpisodeDataError(
                f"images: expected {height} x {width} pixels in all, found {image.shape[:2]}"
            )
        return letterbox(image, height)

    def __getstate__(self) -> dict[str, object]:
        """Return what another process needs; only one that is forked shares the kept images."""
        return {**vars(self), "kept": None}

    def _image(self, row: int) -> UInt8[np.ndarray, "h w 3"]:
        image = None if self.kept is None else self.kept.get(row)
        if image is None:
            image = self._decode(row)
            if self.kept is not None:
                self.kept.put(row, image)
        return image

    @abstractmethod
    def _decode(self, row: int) -> UInt8[np.ndarray, "h w 3"]:
        """Return the image of a frame from its file."""


def letterbox(
    image: UInt8[np.ndarray, "_ _ 3"], side: int, resize: Literal["bilinear", "antialias"] = "bilinear"
) -> UInt8[np.ndarray, "{side} {side} 3"]:
    """Return an image scaled to fit a square, black around it."""
    import torch  # which most users of a data set have no need of

    from pi0.preprocess import resize_with_pad

    x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255.0
    x = resize_with_pad(x, side, resize)
    return (x[0] * 255.0).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


class FilmedImages(ImageColumn):
    """Images in video files."""

    def __init__(self, frames: FrameTable, footage: Footage, fps: float) -> None:
        """Prepare; the videos are opened when they are needed."""
        super().__init__(len(frames.row), footage.sizes)
        self._footage, self._fps = footage, fps
        self._starts, self._lengths = frames.starts, frames.lengths

    def _decode(self, row: int) -> UInt8[np.ndarray, "h w 3"]:
        episode = int(np.searchsorted(self._starts, row, side="right")) - 1
        file = int(self._footage.file[episode])
        if file == NOWHERE:
            raise EpisodeDataError(
                f"frame {row} of the set is of an episode that was left out for its faults"
            )
        path, first = self._footage.files[file], int(self._footage.first[episode])
        video = _OPEN_VIDEOS.get((path, self._fps), lambda: Video(path, self._fps))
        start, end = int(self._starts[episode]), int(self._starts[episode] + self._lengths[episode])

        def keep(number: int, frame: av.VideoFrame) -> None:
            passed = start + number - first
            if self.kept is not None and start <= passed < end and self.kept.lacks(passed):
                self.kept.put(passed, frame.to_ndarray(format="rgb24"))

        return video.image(first + row - start, keep)


class StoredImages(ImageColumn):
    """Images in the files of data/, as PNG or JPEG."""

    def __init__(self, frames: FrameTable, column: str, sizes: Sequence[tuple[int, int]]) -> None:
        """Prepare; `sizes` as `find_sizes` says."""
        super().__init__(len(frames.row), sizes)
        self._column, self._frames = column, frames
        self._groups = Recent[tuple[int, int], pa.Array](_ENCODED_BYTES, _num_bytes)

    @property
    def largest_group(self) -> int:
        """Return how many bytes of images are read for one of them, at most."""
        return max(size for file in self._frames.files for size in _group_sizes(file.path, self._column))

    def _decode(self, row: int) -> UInt8[np.ndarray, "h w 3"]:
        number, place = int(self._frames.file[row]), int(self._frames.row[row])
        ends = self._frames.files[number].group_ends
        group = int(np.searchsorted(ends, place, side="right"))
        first = int(ends[group - 1]) if group else 0
        cells = self._groups.get((number, group), lambda: self._read(number, group, first))
        where = f"{self._frames.files[number].path}: {self._column}: row {place}"
        return decode_image(cells[place - first].as_py(), where)

    def _read(self, number: int, group: int, first: int) -> pa.Array:
        """Return the images of a row group as they are in the file; those with room are kept decoded."""
        cells = _encoded(self._frames.files[number].path, self._column, group)
        if self.kept is not None:
            for place, row in enumerate(self._frames.rows_at(number, first, first + len(cells)).tolist()):
                if row >= 0 and self.kept.lacks(row):
                    with suppress(EpisodeDataError):  # told when it is asked for
                        self.kept.put(row, decode_image(cells[place].as_py(), ""))
        return cells


def find_sizes(
    root: Path, frames: FrameTable, column: str, bad: set[int], faults: list[Fault]
) -> tuple[tuple[int, int], ...]:
    """Return the heights and widths of stored images, by the first one of each file.

    Faults are a file without the column, and an episode with a frame without image, which is added to `bad`.
    """
    sizes: dict[tuple[int, int], None] = {}
    for number, file in enumerate(frames.files):
        where = f"{file.path.relative_to(root)}: {column}"
        try:
            for row in _rows_without(frames, number, column):
                episode, frame = (int(frames.columns[x][row]) for x in ("episode_index", "frame_index"))
                if episode not in bad:
                    bad.add(episode)
                    what = f"expected an image in every frame, found none in {frame}"
                    faults.append(Fault(where, what, LEAVE_OUT, (episode,)))
            cells: Iterator[pa.RecordBatch] = pq.ParquetFile(file.path, memory_map=True).iter_batches(
                1, columns=[column]
            )
            first = next((cell for x in cells if (cell := _cells(x.column(column))[0]).is_valid), None)
            if first is not None:
                image = decode_image(first.as_py(), where)
                sizes[image.shape[0], image.shape[1]] = None
        except UNREADABLE as error:
            faults.append(Fault(where, f"expected images, found {reason_of(error)}", FETCH_AGAIN))
    return tuple(sizes)


def _rows_without(frames: FrameTable, number: int, column: str) -> Iterator[int]:
    """Yield the frames of a file that have no image, as far as the file counts them."""
    file = frames.files[number]
    metadata = pq.read_metadata(file.path)
    leaf, first = _leaf(metadata, column), 0
    for group in range(metadata.num_row_groups):
        statistics = metadata.row_group(group).column(leaf).statistics
        if statistics is not None and statistics.null_count:
            cells = _encoded(file.path, column, group)
            rows = frames.rows_at(number, first, first + len(cells))[
                cells.is_null().to_numpy(zero_copy_only=False)
            ]
            yield from rows[rows >= 0].tolist()
        first += metadata.row_group(group).num_rows


def _encoded(path: Path, column: str, group: int) -> pa.Array:
    try:
        return _cells(pq.ParquetFile(path).read_row_group(group, [column], use_threads=False).column(column))
    except UNREADABLE as error:
        raise EpisodeDataError(
            f"{path}: {column}: row group {group}: {reason_of(error)}; {FETCH_AGAIN}"
        ) from error


def _group_sizes(path: Path, column: str) -> list[int]:
    metadata = pq.read_metadata(path)
    leaf, groups = _leaf(metadata, column), range(metadata.num_row_groups)
    return [metadata.row_group(group).column(leaf).total_uncompressed_size for group in groups]


def _leaf(metadata: pq.FileMetaData, column: str) -> int:
    """Return the number of the leaf column of the images' bytes; raise ValueError if there is none."""
    paths = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    leaf = next((i for i, path in enumerate(paths) if path in (column, f"{column}.bytes")), None)
    if leaf is None:
        raise ValueError("no such column of images")
    return leaf


def _num_bytes(cells: pa.Array) -> float:
    return float(cells.nbytes)


def _cells(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return the bytes of images, alone or beside their paths."""
    cells = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return cells.field("bytes") if isinstance(cells, pa.StructArray) else cells

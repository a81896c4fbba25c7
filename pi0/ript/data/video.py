"""One video file, any frame of it by its number. Axes: h w image size."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import av
from av.error import FFmpegError
from jaxtyping import UInt8
from numpy import ndarray

from pi0.ript.data.records import EpisodeDataError
from pi0.ript.data.tables import FETCH_AGAIN, reason_of

VIDEO_ERRORS = (FFmpegError, OSError, ValueError)


@dataclass(frozen=True)
class Header:
    """What a video file says of itself."""

    num_frames: int
    seconds: float | None
    """None: it does not say."""
    size: tuple[int, int]
    """Height and width."""


class Video:
    """An open video file, whose frames are numbered from 0 in the order in which they are shown."""

    def __init__(self, path: Path, fps: float) -> None:
        """Open a file of `fps` frames per second; one that is no video is a ValueError or an OSError."""
        self._path, self._fps = path, fps
        self._container = av.open(str(path))
        if not self._container.streams.video:
            raise ValueError("no video in it")
        self._stream = self._container.streams.video[0]
        # Threads are slow for single frames, and do not survive a fork.
        self._stream.codec_context.thread_count = 1
        self._frames: Iterator[av.VideoFrame] = iter(())
        self._next: int | None = None  # number of the frame behind the last one decoded
        self._longest_way = 1  # most frames decoded for one, which is how far key frames are apart

    def header(self, needed: int) -> Header:
        """Return what the file says of itself, having looked whether the last frame that is needed is there.

        Raises:
            ValueError: The file ends before it, whatever it announces.
        """
        stream, self._next = self._stream, None
        count = stream.frames or sum(packet.size > 0 for packet in self._container.demux(stream))
        if 0 < needed <= count:
            self._search(needed - 1)
            packets = (x for x in self._container.demux(stream) if x.size and x.pts is not None)
            last = max((self._number(packet.pts) for packet in packets), default=-1)
            if last < needed - 1:
                raise ValueError(f"{count} frames announced, and an end before frame {needed - 1}")
        seconds = None if stream.duration is None else float(stream.duration * self._tick)
        return Header(count, seconds, (stream.height, stream.width))

    def image(
        self, number: int, passed: Callable[[int, av.VideoFrame], None] = lambda number, frame: None
    ) -> UInt8[ndarray, "h w 3"]:
        """Return a frame in RGB; `passed` is given those before it that had to be decoded on the way.

        Raises:
            EpisodeDataError: It is not in the file, or cannot be decoded.
        """
        try:
            if self._next is None or not 0 <= number - self._next < self._longest_way:
                self._frames = self._from_key_frame(number)
            for way, frame in enumerate(self._frames, 1):
                found = self._number(frame.pts)
                self._next = found + 1
                if found == number:
                    self._longest_way = max(self._longest_way, way)
                    return frame.to_ndarray(format="rgb24")
                if found > number:
                    break
                passed(found, frame)
            reason = "none"
        except VIDEO_ERRORS as error:
            reason = reason_of(error)
        self._next = None
        raise EpisodeDataError(
            f"{self._path}: frame {number}: expected an image, found {reason}; {FETCH_AGAIN}"
        )

    def close(self) -> None:
        """Free the decoder and its pictures at once; else they stay until the garbage is collected."""
        self._frames = iter(())
        self._container.close()

    @property
    def _tick(self) -> float:
        """Return the seconds between two time stamps of the file."""
        return float(self._stream.time_base or 1)

    @property
    def _origin(self) -> int:
        return self._stream.start_time or 0

    def _number(self, time_stamp: int | None) -> int:
        if time_stamp is None:
            raise OSError("a frame without time")
        return round((time_stamp - self._origin) * self._tick * self._fps)

    def _search(self, number: int) -> None:
        """Go to the key frame at or before a frame."""
        time_stamp = self._origin + int(
            (number + 0.25) / self._fps / self._tick
        )  # for rates that are rounded
        self._container.seek(time_stamp, stream=self._stream, backward=True)

    def _from_key_frame(self, number: int) -> Iterator[av.VideoFrame]:
        """Return decoded frames, of which the first is at or before a frame."""
        start, back = number, 8
        while True:
            self._search(start)
            frames = self._container.decode(self._stream)
            first = next(frames, None)
            if first is not None and (start == 0 or self._number(first.pts) <= number):
                return chain([first], frames)
            if start == 0:
                return iter(())
            # Where frames are decoded in another order than shown, the key frame that was found can be later.
            start, back = max(start - back, 0), 4 * back

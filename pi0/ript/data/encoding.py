"""Image storage of episodes: PNG bytes (lossless) and H.264 video (small, not exact)."""

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import av
import cv2
import numpy as np
from jaxtyping import UInt8

from pi0.ript.data.records import EpisodeDataError
from pi0.ript.data.tables import FETCH_AGAIN

VIDEO_ENCODER = {"vcodec": "h264", "pix_fmt": "yuv420p", "g": 2, "crf": 18, "preset": "ultrafast"}
"""As lerobot's `RGBEncoderConfig` names them. At 256 px about 11 times smaller than PNG and 7 times
cheaper to write, at about 40 dB; a key frame every second frame keeps random access cheap."""

_READ_COLOUR = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
_LARGEST_LOSSLESS = 128
"""Image size up to which PNG, which is cheap there (4 KB a frame at 64 px), is the default."""


def default_storage(image_size: int) -> str:
    """Return "image" for small images, whose bytes then survive exactly, else "video"."""
    return "image" if image_size <= _LARGEST_LOSSLESS else "video"


def encode_png(frames: UInt8[np.ndarray, "t h w 3"]) -> list[bytes]:
    """Return one PNG per RGB frame."""
    fast = [cv2.IMWRITE_PNG_COMPRESSION, 1]
    return [cv2.imencode(".png", frame[..., ::-1], fast)[1].tobytes() for frame in frames]


def decode_image(encoded: bytes | None, where: str) -> UInt8[np.ndarray, "h w 3"]:
    """Return the RGB image of PNG or JPEG bytes; `where` they are is for the EpisodeDataError."""
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), _READ_COLOUR) if encoded else None
    if image is None:
        found = f"{len(encoded)} bytes of something else" if encoded else "none"
        raise EpisodeDataError(f"{where}: expected an image, found {found}; {FETCH_AGAIN}")
    return np.ascontiguousarray(image[..., ::-1])


def encode_video(path: Path, frames: Iterable[UInt8[np.ndarray, "h w 3"]], fps: int) -> None:
    """Write the RGB frames, at least one, to an MP4 file, one thread, replacing it only when complete."""
    remaining = iter(frames)
    first = next(remaining)
    height, width = first.shape[:2]
    if height % 2 or width % 2:
        raise ValueError(f"video needs an even image size, found {width}x{height}; use storage='image'")
    options = {key: str(VIDEO_ENCODER[key]) for key in ("g", "crf", "preset")} | {"threads": "1"}
    temporary = path.with_suffix(".tmp")
    with av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream(str(VIDEO_ENCODER["vcodec"]), fps, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = width, height
        stream.pix_fmt = str(VIDEO_ENCODER["pix_fmt"])
        for frame in chain([first], remaining):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    temporary.replace(path)


def video_frames(path: Path) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Yield every RGB frame of a video file."""
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")

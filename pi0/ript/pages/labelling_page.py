"""The page on which a person watches the episodes of a data set, says which succeeded, and saves a CSV."""

import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
from jaxtyping import UInt8

from pi0.ript import page
from pi0.ript.data.encoding import encode_video
from pi0.ript.data.frame_set import FrameSet
from pi0.ript.data.records import EpisodeDataError
from pi0.ript.progress import progress_bar

_TEMPLATE = Path(__file__).with_name("labelling.html")
_HEIGHT = 256  # pixels of a video, at most
_DECODED = 32  # frames of each camera that are in memory together


def write_labelling_page(path: Path, name: str, frames: FrameSet, shown: Sequence[int]) -> Path:
    """Write the page, and beside it a directory of its name with a video of each episode; return the page.

    Args:
        path: The page; it is opened from the disk, without a server.
        name: What the data set is called.
        frames: The data set; labels that it has are shown.
        shown: Numbers of the episodes, as the set's files have them.

    Raises:
        EpisodeDataError: The set has no camera.
    """
    if not frames.images:
        raise EpisodeDataError(
            f"{frames.name}: expected a camera to watch, found none; label it by --csv or --rule"
        )
    videos = path.with_suffix("")
    videos.mkdir(parents=True, exist_ok=True)
    episodes = []
    for number in progress_bar(shown, unit="episode", desc="videos", disable=len(shown) < 2):
        place, video = frames.episodes.tolist().index(number), videos / f"episode-{number}.mp4"
        encode_video(video, _pictures(frames, place), max(1, round(frames.fps)))
        labels = frames.labels[place]
        episodes.append(
            {
                "number": number,
                "steps": int(frames.lengths[place]),
                "task": labels.instruction,
                "success": labels.success,
                "video": quote(video.relative_to(path.parent).as_posix()),
            }
        )
    command = shlex.join(["pi0-label", frames.name, "--csv", f"{name}-success.csv"])
    sections = [
        (
            "",
            page.paragraph(f"Save the CSV and run: {command}")
            + _data({"name": name, "episodes": episodes})
            + _TEMPLATE.read_text(),
        )
    ]
    return page.write_page(path, f"{name}: which episodes succeeded?", sections)


def _pictures(frames: FrameSet, place: int) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Yield the frames of an episode, the images of all cameras beside each other."""
    first, end = int(frames.starts[place]), int(frames.starts[place] + frames.lengths[place])
    for row in range(first, end, _DECODED):
        rows = slice(row, min(row + _DECODED, end))
        for views in zip(*(column[rows] for column in frames.images.values()), strict=True):
            height = _even(min(_HEIGHT, max(view.shape[0] for view in views)))
            sizes = [(_even(view.shape[1] * height / view.shape[0]), height) for view in views]
            scaled = [cv2.resize(x, size, interpolation=cv2.INTER_AREA)
                      for x, size in zip(views, sizes, strict=True)]  # fmt: skip
            yield np.concatenate(scaled, axis=1)


def _even(length: float | int) -> int:
    """Return the nearest even number above 0, which video needs."""
    return max(2, round(length / 2) * 2)


def _data(values: dict[str, Any]) -> str:
    """Return plain values as JSON that no text in them can end, for a script of the page."""
    text = json.dumps(values).replace("<", "\\u003c")
    return f'<script type="application/json" id="episodes">{text}</script>'

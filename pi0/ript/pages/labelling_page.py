"""The page on which a person watches the episodes of a data set, says which succeeded, and saves a CSV."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
from jaxtyping import UInt8

from pi0.ript import page
from pi0.ript.data.encoding import encode_video
from pi0.ript.data.frame_set import FrameSet
from pi0.ript.data.records import EpisodeDataError, Images
from pi0.ript.progress import progress_bar

_TEMPLATE = Path(__file__).with_name("labelling.html")
_HEIGHT = 256  # pixels of a video, at most


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
        place = frames.episodes.tolist().index(number)
        episode, video = frames.episode(place), videos / f"episode-{number}.mp4"
        encode_video(video, beside_each_other(episode.images), max(1, round(frames.fps)))
        labels = episode.labels
        episodes.append(
            {
                "number": number,
                "steps": len(episode),
                "task": labels.instruction,
                "success": labels.success,
                "video": quote(video.relative_to(path.parent).as_posix()),
            }
        )
    then = f"Save the CSV and run: pi0-label {frames.name} --csv {name}-success.csv"
    sections = [
        ("", page.paragraph(then) + _data({"name": name, "episodes": episodes}) + _TEMPLATE.read_text())
    ]
    return page.write_page(path, f"{name}: which episodes succeeded?", sections)


def beside_each_other(images: Images) -> UInt8[np.ndarray, "t h w 3"]:
    """Return the images of all cameras in one, of an equal and even height and an even width."""
    height = _even(min(_HEIGHT, max(frames.shape[1] for frames in images.values())))
    scaled = []
    for frames in images.values():
        width = _even(frames.shape[2] * height / frames.shape[1])
        scaled.append([cv2.resize(x, (width, height), interpolation=cv2.INTER_AREA) for x in frames])
    return np.concatenate([np.stack(frames) for frames in scaled], axis=2)


def _even(length: float | int) -> int:
    """Return the nearest even number above 0, which video needs."""
    return max(2, round(length / 2) * 2)


def _data(values: dict[str, Any]) -> str:
    """Return plain values as JSON that no text in them can end, for a script of the page."""
    text = json.dumps(values).replace("<", "\\u003c")
    return f'<script type="application/json" id="episodes">{text}</script>'

"""Videos of episodes side by side, each marked with its outcome.

Axes: h w image size; height width of a tile.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from pi0.ript.episode import Rollout

_SUCCESS, _FAILURE, _INK = (46, 160, 67), (218, 54, 51), (255, 255, 255)
_MIN_TILE = 224  # pixels; smaller images are enlarged by a whole factor
_BORDER, _LABEL, _TEXT = 4, 20, 13  # pixels: frame, strip of the label, its letters
_HOLD = 1.0  # seconds that the last frame stays


def write_grid(path: str | Path, rollouts: Sequence[Rollout]) -> None:
    """Write an mp4 in real time with a tile per episode: the view of its task's first camera.

    Border and label are green for success, red for failure.

    A tile keeps its last image when its episode has ended. Record the episodes with a small `render_every`.

    Args:
        path: The file; its folder is made.
        rollouts: Any number of episodes, of one image size.

    Raises:
        ValueError: There are no episodes, or their images are missing or of different sizes.
    """
    images = _images(rollouts)
    stride = min((int(gap) for r in rollouts for gap in np.diff(r.observed)), default=1)
    rate = rollouts[0].task.hz / stride
    tiles = [_tile(r, x.shape[1]) for r, x in zip(rollouts, images, strict=True)]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.mp4")  # an interrupted run leaves no broken video
    # H.264 in yuv420p plays everywhere and needs even sizes.
    steps = range(0, max(map(len, rollouts)) + round(_HOLD * rate) * stride, stride)
    writer: Any = imageio.get_writer(partial, fps=rate, codec="libx264", quality=8, macro_block_size=2)
    with writer:
        for step in steps:
            writer.append_data(_frame(rollouts, images, tiles, step))
    partial.replace(path)


def _images(rollouts: Sequence[Rollout]) -> list[UInt8[np.ndarray, "_ h w 3"]]:
    """Return the images of each episode's first camera, or raise."""
    if not rollouts:
        raise ValueError("rollouts: expected at least one episode to show, found none")
    images = []
    for r in rollouts:
        key = r.task.cameras[0]
        if key not in r.images:
            raise ValueError(
                f"camera: expected one that the episode of {r.task.id!r} was recorded with "
                f"({sorted(r.images) or 'none: its images were not kept'}), found {key!r}"
            )
        images.append(r.images[key])
    sizes = sorted({x.shape[1:3] for x in images})
    if len(sizes) > 1:
        raise ValueError(f"rollouts: expected images of one size, found {sizes}")
    return images


def _tile(rollout: Rollout, size: int) -> UInt8[np.ndarray, "height width 3"]:
    """Return an episode's tile without its image: border and label."""
    scale = -(-_MIN_TILE // size)
    side = size * scale + 2 * _BORDER
    color = _SUCCESS if rollout.success else _FAILURE
    tile = Image.new("RGB", (side, side + _LABEL), color)
    outcome = f"{'success' if rollout.success else 'failure'}, {len(rollout)} steps"
    font = ImageFont.load_default(_TEXT)
    draw = ImageDraw.Draw(tile)
    room = side - 3 * _BORDER - draw.textlength(outcome, font)
    name = rollout.task.name
    while draw.textlength(name, font) > room - _BORDER:
        name = name.removesuffix("...")[:-1] + "..."
    draw.text((_BORDER, side), name, _INK, font)
    draw.text((side - _BORDER, side), outcome, _INK, font, anchor="ra")
    return np.array(tile)


def _frame(
    rollouts: Sequence[Rollout],
    images: Sequence[UInt8[np.ndarray, "_ h w 3"]],
    tiles: Sequence[UInt8[np.ndarray, "height width 3"]],
    step: int,
) -> UInt8[np.ndarray, "grid_height grid_width 3"]:
    """Return the grid at a step: every tile with its last image until then."""
    columns = math.ceil(math.sqrt(len(rollouts)))
    rows = math.ceil(len(rollouts) / columns)
    height, width, _ = tiles[0].shape
    grid = np.zeros((rows * height + rows * height % 2, columns * width + columns * width % 2, 3), np.uint8)
    for i, (r, x, tile) in enumerate(zip(rollouts, images, tiles, strict=True)):
        image = x[np.searchsorted(r.observed, step, side="right") - 1]
        scale = (width - 2 * _BORDER) // image.shape[1]
        top, left = i // columns * height, i % columns * width
        grid[top : top + height, left : left + width] = tile
        inside = grid[top + _BORDER :, left + _BORDER :][: image.shape[0] * scale, : image.shape[1] * scale]
        inside[:] = image.repeat(scale, 0).repeat(scale, 1)
    return grid

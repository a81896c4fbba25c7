"""Videos: one tile per episode, marked with its outcome, readable by any player."""

import imageio.v2 as imageio
import numpy as np
import pytest

from pi0.ript.envs import InitialState, Task
from pi0.ript.episode import Rollout
from pi0.ript.video import write_grid

TILE = 256 + 2 * 4  # 64 px, four times as large, and a border
GREEN, RED = (46, 160, 67), (218, 54, 51)


def episode(
    success: bool,
    length: int,
    name="open-the-very-long-named-drawer-of-the-cabinet",
    size=64,
    cameras=("agentview", "wrist"),
):
    """Recorded every two steps; the agent's view gets brighter by 10 an image, the wrist's is black."""
    task = Task("suite", name, "open", 50, 20.0, 2, 2, cameras, size)
    observed = np.arange(0, length, 2)
    images = np.broadcast_to(
        (10 * np.arange(len(observed), dtype=np.uint8))[:, None, None, None], (len(observed), size, size, 3)
    )
    return Rollout(
        task=task,
        initial_state=InitialState(task.id, np.zeros(1), "heldout", 0),
        seed=0,
        success=success,
        states=np.zeros((length, 2), np.float32),
        actions=np.zeros((length, 2), np.float32),
        observed=observed,
        images={cameras[0]: images.copy(), **{c: np.zeros_like(images) for c in cameras[1:]}},
    )


def read(path) -> tuple[np.ndarray, float]:
    with imageio.get_reader(path) as reader:
        frames = [frame for frame in reader]  # noqa: C416 - list() asks for its length, which is infinite
        return np.stack(frames), reader.get_meta_data()["fps"]


def brightness(frames, row=0, column=0):
    """Of the middle of a tile, in each frame."""
    top, left = row * (TILE + 20) + 100, column * TILE + 100
    return frames[:, top : top + 60, left : left + 60].mean((1, 2, 3))


def test_grid(tmp_path):
    path = tmp_path / "new" / "grid.mp4"
    write_grid(path, [episode(True, 10), episode(False, 24), episode(True, 4)])
    frames, fps = read(path)
    assert fps == 10  # 20 steps per second, every second one shown
    assert frames.shape == (12 + 10, 2 * (TILE + 20), 2 * TILE, 3)
    assert [p.name for p in path.parent.iterdir()] == ["grid.mp4"]
    expected = 10 * np.minimum(np.arange(22), 4)  # holds its last image
    np.testing.assert_allclose(brightness(frames), expected, atol=3)
    np.testing.assert_allclose(brightness(frames, 0, 1), 10 * np.minimum(np.arange(22), 11), atol=3)
    np.testing.assert_allclose(brightness(frames, 1, 0), 10 * np.minimum(np.arange(22), 1), atol=3)
    assert brightness(frames, 1, 1).max() < 3  # no fourth episode


def test_outcome_is_marked(tmp_path):
    write_grid(tmp_path / "a.mp4", [episode(True, 10), episode(False, 10)])
    frames, _ = read(tmp_path / "a.mp4")
    for tile, color in enumerate((GREEN, RED)):
        left = tile * TILE
        border = frames[0, 20:240, left + 1 : left + 3].mean((0, 1))
        np.testing.assert_allclose(border, color, atol=25)
        label = frames[0, TILE + 2 : TILE + 18, left + 2 : left + TILE - 2].astype(int)
        assert (label.min(-1) > 180).sum() > 300, "white letters"
        np.testing.assert_allclose(np.median(label, (0, 1)), color, atol=25)


def test_large_images_stay(tmp_path):
    write_grid(tmp_path / "a.mp4", [episode(True, 10, size=224)])
    frames, _ = read(tmp_path / "a.mp4")
    assert frames.shape[1:] == (224 + 8 + 20, 224 + 8, 3)


def test_bad_input(tmp_path):
    path = tmp_path / "a.mp4"
    with pytest.raises(ValueError, match="rollouts: expected at least one episode"):
        write_grid(path, [])
    blind = episode(True, 4)
    blind.images.clear()
    with pytest.raises(ValueError, match="none: its images were not kept"):
        write_grid(path, [blind])
    with pytest.raises(ValueError, match=r"images of one size, found \[\(64, 64\), \(96, 96\)\]"):
        write_grid(path, [episode(True, 4), episode(True, 4, size=96)])
    assert not list(tmp_path.iterdir())

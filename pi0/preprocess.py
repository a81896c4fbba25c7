"""Raw camera images and vectors -> model tensors, with every wrong input refused by name.

Axis legend: b batch, d feature dim.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from pi0.features import STATE, FeatureConfig


def model_images(
    batch: Mapping[str, Any], features: FeatureConfig, size: int, device: torch.device
) -> tuple[Float[Tensor, "b c 3 {size} {size}"], Bool[Tensor, "b c"]]:
    """Return the images of the cameras that this robot has, in [-1, 1], and where they are valid.

    A key `{image_key}_is_pad` (b,) marks samples that lack the camera, as in LeRobotDataset.
    """
    require_cameras(batch, features)
    images, masks = [], []
    for key in features.present_cameras:
        image = model_image(batch[key], key, size, features.resize, device)
        is_pad = batch.get(f"{key}_is_pad")
        mask = torch.ones(len(image), dtype=torch.bool)
        masks.append(mask if is_pad is None else ~torch.as_tensor(is_pad).reshape(-1).bool().cpu())
        images.append(image)
    sizes = {key: len(image) for key, image in zip(features.present_cameras, images, strict=True)}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"cameras: expected the same batch size in all, found {sizes}")
    return torch.stack(images, 1), torch.stack(masks, 1)


def require_cameras(batch: Mapping[str, Any], features: FeatureConfig) -> None:
    """Raise ValueError unless the batch has the images of the cameras that this robot has, and no others."""
    images = {key for key in batch if key.startswith("observation.image") and not key.endswith("_is_pad")}
    expected = set(features.present_cameras)
    if images != expected:
        raise ValueError(
            f"cameras: expected {sorted(expected)}, found {sorted(images)}. A camera that the robot lacks "
            "belongs in FeatureConfig.absent_cameras; one with another name must be renamed in the batch."
        )


def model_image(
    image: Shaped[Tensor, "b ..."] | np.ndarray,
    name: str,
    size: int,
    resize: Literal["bilinear", "antialias"],
    device: torch.device,
) -> Float[Tensor, "b 3 {size} {size}"]:
    """Return one camera's images resized with padding to a square, in [-1, 1].

    Takes uint8 in [0, 255] or floating point in [0, 1], channels first or last. The aspect ratio is kept,
    and the padding is centred and black (openpi image_tools.py: resize_with_pad).
    """
    x = torch.as_tensor(np.ascontiguousarray(image) if isinstance(image, np.ndarray) else image)
    if x.ndim != 4 or 3 not in (x.shape[1], x.shape[-1]):
        raise ValueError(
            f"{name}: expected (batch, 3, height, width) or (batch, height, width, 3), found {tuple(x.shape)}"
        )
    if x.dtype != torch.uint8 and not x.is_floating_point():
        raise ValueError(f"{name}: expected uint8 in [0, 255] or floats in [0, 1], found {x.dtype}")
    if x.is_floating_point():
        low, high = (float(v) for v in x.aminmax())
        if not (low >= 0.0 and high <= 1.0):  # also true for NaN
            raise ValueError(
                f"{name}: expected floats in [0, 1], found [{low:g}, {high:g}]; pass uint8 images as uint8"
            )
    is_byte = x.dtype == torch.uint8
    x = x.to(device, non_blocking=True).float()
    x = x / 255.0 if is_byte else x
    if x.shape[1] != 3:
        x = x.permute(0, 3, 1, 2)
    return resize_with_pad(x, size, resize) * 2.0 - 1.0


def resize_with_pad(
    x: Float[Tensor, "b 3 height width"], size: int, resize: Literal["bilinear", "antialias"]
) -> Float[Tensor, "b 3 {size} {size}"]:
    """Return images in [0, 1] scaled to fit a square, black around them; unchanged if they fit already."""
    height, width = x.shape[-2:]
    if (height, width) == (size, size):
        return x.contiguous()
    ratio = max(height, width) / size
    new = (max(1, int(height / ratio)), max(1, int(width / ratio)))  # 1: of an image that is a line
    x = F.interpolate(x, new, mode="bilinear", align_corners=False, antialias=resize == "antialias").clamp(
        0.0, 1.0
    )
    if resize == "antialias":
        x = (x * 255.0).round() / 255.0  # openpi resizes uint8 images
    top, left = (size - new[0]) // 2, (size - new[1]) // 2
    return F.pad(x, (left, size - new[1] - left, top, size - new[0] - top))


def checked_vector(
    batch: Mapping[str, Any], key: str, dim: int, device: torch.device, ndim: int = 2
) -> Float[Tensor, "b ..."]:
    """Return a float32 feature of the batch; a wrong width, NaN or infinity is a ValueError."""
    if key not in batch:
        raise ValueError(f"{key}: missing from the batch; found {sorted(batch)}")
    x = torch.as_tensor(batch[key])
    if x.ndim != ndim or x.shape[-1] != dim:
        axes = "(batch, chunk, dim)" if ndim == 3 else "(batch, dim)"
        raise ValueError(f"{key}: expected {axes} with dim {dim}, found {tuple(x.shape)}")
    if not bool(torch.isfinite(x).all()):
        bad = (~torch.isfinite(x)).nonzero()[0].tolist()
        raise ValueError(f"{key}: expected finite numbers, found {x[tuple(bad)].item()} at index {bad}")
    return x.to(device, torch.float32)


def padded(x: Float[Tensor, "*n d"], width: int) -> Float[Tensor, "*n {width}"]:
    """Return x with zeros up to the model's width."""
    return F.pad(x, (0, width - x.shape[-1]))


def tasks(batch: Mapping[str, Any], batch_size: int) -> list[str]:
    """Return the instruction of each sample; one string stands for all."""
    task = batch.get("task")
    if isinstance(task, str):
        return [task] * batch_size
    if not isinstance(task, Sequence) or not all(isinstance(t, str) for t in task):
        raise ValueError(f"task: expected a string or a list of strings (the instructions), found {task!r}")
    if len(task) != batch_size:
        raise ValueError(f"task: expected {batch_size} instructions, as many as {STATE}, found {len(task)}")
    return list(task)


def valid_steps(batch: Mapping[str, Any], shape: torch.Size, device: torch.device) -> Float[Tensor, "b h"]:
    """Return 1 for actions of the data and 0 where `action_is_pad`; a mask of another shape is an error."""
    is_pad = batch.get("action_is_pad")
    if is_pad is None:
        return torch.ones(shape, device=device)
    is_pad = torch.as_tensor(is_pad, device=device)
    if is_pad.shape != shape:
        raise ValueError(f"action_is_pad: expected {tuple(shape)}, found {tuple(is_pad.shape)}")
    return 1.0 - is_pad.float()


def samples_of(batch: Mapping[str, Any], numbers: Sequence[int], size: int) -> dict[str, Any]:
    """Return some samples of a batch of that size; what is one for all samples stays."""

    def chosen(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [value[i] for i in numbers]
        is_by_sample = isinstance(value, Tensor | np.ndarray) and value.ndim > 0 and len(value) == size
        return value[list(numbers)] if is_by_sample else value

    return {key: chosen(value) for key, value in batch.items()}

"""Random crop, rotation and colour of training images, alike for all cameras of a sample.

Axes: h w image size.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F  # noqa: N812

from pi0.ript.data.settings import AugmentationSettings

_STREAM = 12  # keeps these draws apart from others of the same seed


def augment(
    images: Mapping[str, UInt8[np.ndarray, "_ _ 3"]], settings: AugmentationSettings, key: Sequence[int]
) -> dict[str, UInt8[np.ndarray, "_ _ 3"]]:
    """Return the images of one sample, by camera, changed; a function of `key` alone (numbers from 0)."""
    rng = np.random.default_rng((*key, _STREAM))
    place = _placement(settings, rng)
    recolour = _colours(settings, rng)
    changed = {}
    for camera, image in images.items():
        x = torch.from_numpy(image).permute(2, 0, 1)
        is_fixed = any(part in camera for part in settings.fixed_cameras)
        x = recolour(x if is_fixed else place(x))
        changed[camera] = x.permute(1, 2, 0).contiguous().numpy()
    return changed


def _placement(settings: AugmentationSettings, rng: np.random.Generator) -> Callable[[Tensor], Tensor]:
    """Return crop, scaling back and rotation as one interpolation."""
    scale = 1.0 / settings.crop_scale
    # Of the crop's centre from the image's, as a share of the side: unrotated, it lies within the image.
    shift = rng.uniform(-0.5, 0.5, size=2) * (1.0 - settings.crop_scale)
    angle = rng.uniform(-1.0, 1.0) * settings.rotation_degrees

    def place(x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        # The image moves against the crop's centre, then by the scale.
        moved = [-float(shift[0]) * width * scale, -float(shift[1]) * height * scale]
        return F.affine(x, angle, moved, scale, [0.0, 0.0], interpolation=InterpolationMode.BILINEAR)

    return place


def _colours(settings: AugmentationSettings, rng: np.random.Generator) -> Callable[[Tensor], Tensor]:
    ranges = (settings.brightness, settings.contrast, settings.saturation)
    factors = [1.0 + float(rng.uniform(-r, r)) for r in ranges]
    hue = float(rng.uniform(-settings.hue, settings.hue))

    def recolour(x: Tensor) -> Tensor:
        for adjust, factor in zip(
            (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation), factors, strict=True
        ):
            x = adjust(x, factor)
        return F.adjust_hue(x, hue) if hue else x

    return recolour

"""Normalisation of states and actions, and the statistics it needs.

Statistics are lerobot's: feature -> {mean, std, min, max, q01, q99, count}, such as
`LeRobotDataset.meta.stats`.

Axis legend: n samples, d feature dim.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pi0.features import NormalizationMode

Statistics = Mapping[str, Mapping[str, "Tensor | np.ndarray | list[float]"]]

_NEEDED: dict[str, tuple[str, str]] = {
    "mean_std": ("mean", "std"),
    "quantiles": ("q01", "q99"),
    "min_max": ("min", "max"),
}
_REMEDY = (
    "Pass statistics=LeRobotDataset(...).meta.stats of the training data, or "
    "statistics={'observation.state': compute_statistics(states), 'action': compute_statistics(actions)} "
    "(pi0.normalize)."
)


class MissingStatisticsError(ValueError):
    """Normalisation was asked for and the numbers for it are not there."""


def compute_statistics(
    values: Float[np.ndarray, "n d"] | Float[Tensor, "n d"],
) -> dict[str, Tensor]:
    """Return mean, std (population), min, max, q01, q99 and count of each dimension, in float32."""
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 2 or len(x) == 0 or not np.isfinite(x).all():
        raise ValueError(f"values: expected a finite array of shape (samples, dim), found shape {x.shape}")
    q01, q99 = np.quantile(x, [0.01, 0.99], axis=0)
    numbers = {
        "mean": x.mean(0),
        "std": x.std(0),
        "min": x.min(0),
        "max": x.max(0),
        "q01": q01,
        "q99": q99,
    }
    statistics = {name: torch.tensor(value, dtype=torch.float32) for name, value in numbers.items()}
    return {**statistics, "count": torch.tensor([float(len(x))])}


class Normalizer(nn.Module):
    """Affine map between raw and model units; `decode(encode(x))` is x up to rounding.

    mean_std: (x - mean) / std. quantiles, min_max: the range is mapped to [-1, 1] and not clipped.
    """

    low: Tensor
    scale_in: Tensor
    scale_out: Tensor

    def __init__(
        self,
        feature: str,
        dim: int,
        mode: NormalizationMode,
        statistics: Statistics | None,
        epsilon: Literal["lerobot", "openpi"] = "lerobot",
    ) -> None:
        super().__init__()
        self.mode = mode
        low, scale = torch.zeros(dim), torch.ones(dim)
        eps = 1e-8 if epsilon == "lerobot" else 1e-6
        scale_in = scale_out = scale
        if mode != "identity":
            low, high = (_statistic(feature, name, dim, mode, statistics) for name in _NEEDED[mode])
            span = high if mode == "mean_std" else high - low
            if epsilon == "openpi":
                scale_in = scale_out = span + eps
            elif mode == "mean_std":
                scale_in, scale_out = span + eps, span
            else:
                scale_in = scale_out = torch.where(span == 0, eps, span)
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("scale_in", scale_in, persistent=False)
        self.register_buffer("scale_out", scale_out, persistent=False)

    def encode(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """Return x in model units."""
        y = x - self.low
        return y / self.scale_in if self.mode in ("mean_std", "identity") else 2.0 * y / self.scale_in - 1.0

    def decode(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """Return x in raw units."""
        y = x if self.mode in ("mean_std", "identity") else (x + 1.0) / 2.0
        return y * self.scale_out + self.low


def _statistic(feature: str, name: str, dim: int, mode: str, statistics: Statistics | None) -> Tensor:
    values = (statistics or {}).get(feature)
    if values is None or values.get(name) is None:
        known = {key: sorted(value) for key, value in (statistics or {}).items()}
        raise MissingStatisticsError(
            f"no {name!r} of {feature!r}, which {mode} normalisation needs; found "
            f"{known or 'no statistics'}. {_REMEDY}"
        )
    value = torch.as_tensor(np.asarray(values[name]), dtype=torch.float32)
    if value.numel() != value.shape[-1]:
        raise ValueError(
            f"statistics of {feature!r}: expected one vector as {name}, found shape {tuple(value.shape)} "
            "(several data sets?); pass those of one data set"
        )
    value = value.flatten()
    if len(value) < dim:
        raise ValueError(
            f"statistics of {feature!r}: expected at least {dim} values of {name}, found {len(value)}"
        )
    value = value[:dim]  # openpi's files are padded to the model's width
    if not bool(value.isfinite().all()):
        raise ValueError(f"statistics of {feature!r}: {name} has NaN or infinite values: {value.tolist()}")
    return value

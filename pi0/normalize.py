"""Normalisation of states and actions, and the statistics it needs.

Statistics are lerobot's: feature -> {mean, std, min, max, q01, q99, count}, such as
`LeRobotDataset.meta.stats`.

Axis legend: n samples, d feature dim.
"""

import warnings
from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pi0.errors import UnusableError
from pi0.features import NormalizationMode

Statistics = Mapping[str, Mapping[str, "Tensor | np.ndarray | list[float]"]]

_NEEDED: dict[str, tuple[str, str]] = {
    "mean_std": ("mean", "std"),
    "quantiles": ("q01", "q99"),
    "min_max": ("min", "max"),
}
FAR_OUTSIDE = 30.0
"""In model units, where nearly all that a policy was trained on lies within 1 to 3 of 0."""
_ONE_VALUE = 1e-6  # of the numbers' own size: quantiles that lie closer together are one
_REMEDY = (
    "Pass statistics=LeRobotDataset(...).meta.stats of the training data, or "
    "statistics={'observation.state': compute_statistics(states), 'action': compute_statistics(actions)} "
    "(pi0.normalize)."
)


class MissingStatisticsError(UnusableError):
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
        self.feature, self.mode = feature, mode
        self._told: set[int] = set()
        if mode == "quantiles":
            for dimension, text in coinciding_quantiles((statistics or {}).get(feature, {})):
                if dimension < dim:
                    warnings.warn(f"statistics of {feature!r}: {text}", stacklevel=2)
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

    def tell_far_outside(self, x: Float[Tensor, "n d"]) -> None:
        """Warn of values that lie far outside of what the statistics describe, once for each dimension."""
        if self.mode == "identity":
            return
        far = (self.encode(x).abs() > FAR_OUTSIDE).cpu()
        for dimension in sorted(set(far.any(0).nonzero().flatten().tolist()) - self._told):
            self._told.add(dimension)
            value = x[int(far[:, dimension].nonzero()[0]), dimension]
            low, scale = float(self.low[dimension]), float(self.scale_in[dimension])
            is_mean = self.mode == "mean_std"
            usual = f"mean {low:.4g}, std {scale:.4g}" if is_mean else f"{low:.4g} to {low + scale:.4g}"
            warnings.warn(
                f"{self.feature}[{dimension}] is {float(value):.4g}, and by the policy's statistics {usual}: "
                "are units and order those of its training data? (told once)",
                stacklevel=2,
            )


def coinciding_quantiles(
    statistics: Mapping[str, "Tensor | np.ndarray | list[float]"],
) -> Iterator[tuple[int, str]]:
    """Yield each dimension whose q01 and q99 are one value though it moves, and what that does to it.

    All that a normaliser of quantiles could do with the few values beside them is to blow them up.
    """
    numbers = {name: np.asarray(value, np.float64).ravel() for name, value in statistics.items()
               if value is not None}  # fmt: skip
    if not {"q01", "q99"} <= numbers.keys():
        return
    low, high = numbers["q01"], numbers["q99"]
    least = numbers.get("min", low - numbers.get("std", 0.0))
    most = numbers.get("max", high + numbers.get("std", 0.0))
    small = _ONE_VALUE * np.maximum(np.abs(low), np.abs(high))
    moves = (low - least > small) | (most - high > small)
    for dimension in np.flatnonzero((high - low <= small) & moves).tolist():
        text = (
            f"dimension {dimension}: q01 and q99 are both {low[dimension]:.6g}, its values "
            f"{least[dimension]:.6g} to {most[dimension]:.6g}: normalised by quantiles they grow without "
            "bound; use mean and std, or wider quantiles"
        )
        yield dimension, text


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
        raise UnusableError(
            f"statistics of {feature!r}: expected one vector as {name}, found shape {tuple(value.shape)} "
            "(several data sets?); pass those of one data set"
        )
    value = value.flatten()
    if len(value) < dim:
        raise UnusableError(
            f"statistics of {feature!r}: expected at least {dim} values of {name}, found {len(value)}"
        )
    value = value[:dim]  # openpi's files are padded to the model's width
    if not bool(value.isfinite().all()):
        raise UnusableError(f"statistics of {feature!r}: {name} has NaN or infinite values: {value.tolist()}")
    return value

"""Training data in a policy's units: are they where its statistics say they are?

Statistics that belong to other values (absolute actions for relative ones, another robot, other units), and
dimensions that hardly move, make numbers of hundreds or 1e15 of plain data. They show in the data.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pi0.features import ACTION, STATE, FeatureConfig, NormalizationMode
from pi0.normalize import Normalizer, Statistics
from pi0.ript.data.frame_set import FrameSet
from pi0.ript.data.settings import MixtureSettings
from pi0.ript.data.statistics import policy_actions
from pi0.ript.progress import progress_bar

FURTHEST = 100.0
"""Of a normalised value: what is further from 0 is refused."""
_FURTHEST_MEDIAN = 10.0
_WIDENED = 10.0  # how far from 0 the furthest value lies once mean and std are made to fit
_DOUBTFUL_MEDIAN, _DOUBTFUL_SPREAD = 3.0, (0.03, 4.0)


@dataclass(frozen=True)
class Dimension:
    """A dimension of the states or actions of a data set, in raw units and in the policy's."""

    place: str
    """The data set's name."""
    feature: str
    number: int
    raw: tuple[float, float]
    """Least and greatest value."""
    normalised: tuple[float, float]
    median: float
    """Of the normalised values."""
    spread: float
    """Standard deviation of the normalised values."""

    def __str__(self) -> str:
        """Return its name."""
        return f"{self.place}: {self.feature}[{self.number}]"

    @property
    def is_outside(self) -> bool:
        """Return whether its values are where no policy can learn from them."""
        furthest = max(abs(value) for value in self.normalised)
        return furthest > FURTHEST or abs(self.median) > _FURTHEST_MEDIAN

    @property
    def is_doubtful(self) -> bool:
        """Return whether the statistics may be those of other values."""
        never_moves = self.raw[0] == self.raw[1]
        least, most = _DOUBTFUL_SPREAD
        return abs(self.median) > _DOUBTFUL_MEDIAN or (not never_moves and not least <= self.spread <= most)


def normalised_dimensions(
    features: FeatureConfig,
    statistics: Statistics,
    sets: Sequence[FrameSet],
    rows: Sequence[Int64[np.ndarray, " _"]],
    *,
    chunk_size: int = 1,
    settings: MixtureSettings | None = None,
    has_actions: bool = True,
) -> list[Dimension]:
    """Return what becomes of each dimension of each set's states, and of its actions, if they are normalised.

    Args:
        features: Of the policy.
        statistics: Those that it normalises by.
        sets: The data sets.
        rows: The frames of each that are trained on.
        chunk_size: Of the policy; matters for relative actions alone.
        settings: How windows are resampled; default: not at all.
        has_actions: False for a value function.
    """
    dimensions = list[Dimension]()
    pairs = list(zip(sets, rows, strict=True))
    for frames, chosen in progress_bar(pairs, unit="data set", desc="normalise", leave=False, delay=5):
        if not len(chosen):
            continue
        values = {STATE: frames.states[chosen]}
        if has_actions:
            relative = features.relative_actions
            values[ACTION] = policy_actions(frames, chosen, relative, chunk_size, settings)
        for feature, raw in values.items():
            if _mode(features, feature) != "identity":
                dimensions += _dimensions(features, statistics, feature, frames.name, raw)
    return dimensions


def _dimensions(
    features: FeatureConfig,
    statistics: Statistics,
    feature: str,
    place: str,
    values: Float[np.ndarray, "n d"],
) -> Iterator[Dimension]:
    normalizer = Normalizer(feature, values.shape[1], _mode(features, feature), statistics, features.epsilon)
    raw = np.asarray(values, np.float32)
    normalised = normalizer.encode(torch.from_numpy(raw)).numpy().astype(np.float64)
    ranges = zip(raw.min(0).tolist(), raw.max(0).tolist(), strict=True)
    limits = zip(normalised.min(0).tolist(), normalised.max(0).tolist(), strict=True)
    medians, spreads = np.median(normalised, 0).tolist(), normalised.std(0).tolist()
    for number, (own, limit, median, spread) in enumerate(zip(ranges, limits, medians, spreads, strict=True)):
        yield Dimension(place, feature, number, own, limit, median, spread)


def _mode(features: FeatureConfig, feature: str) -> NormalizationMode:
    return features.state_normalization if feature == STATE else features.action_normalization


def faults(dimensions: Sequence[Dimension], features: FeatureConfig, statistics: Statistics) -> list[str]:
    """Return a line for each dimension whose values are outside, without the remedy."""
    return [
        f"{x}: expected normalised values near 0, none beyond {FURTHEST:g}, found {x.normalised[0]:.3g} to "
        f"{x.normalised[1]:.3g}: {x.raw[0]:.4g} to {x.raw[1]:.4g} by {_told(features, statistics, x)}"
        for x in dimensions
        if x.is_outside
    ]


def doubts(dimensions: Sequence[Dimension], features: FeatureConfig, statistics: Statistics) -> list[str]:
    """Return a line for each dimension whose statistics may be those of other values, or that never moves."""
    lines = []
    for x in dimensions:
        if x.is_outside:
            continue
        if x.is_doubtful:
            lines.append(
                f"{x} is {x.raw[0]:.4g} to {x.raw[1]:.4g}, and by the statistics "
                f"{_told(features, statistics, x)}: are they those of such values?"
            )
        elif x.feature == STATE and x.raw[0] == x.raw[1]:
            lines.append(f"{x} is always {x.raw[0]:.4g}: the policy learns nothing of other values")
    return lines


def _told(features: FeatureConfig, statistics: Statistics, dimension: Dimension) -> str:
    names = {"mean_std": ("mean", "std"), "quantiles": ("q01", "q99")}.get(
        _mode(features, dimension.feature), ("min", "max")
    )
    numbers = (np.asarray(statistics[dimension.feature][name]).ravel()[dimension.number] for name in names)
    return " and ".join(f"{name} {number:.4g}" for name, number in zip(names, numbers, strict=True))


def widened(
    statistics: Statistics, features: FeatureConfig, dimensions: Sequence[Dimension]
) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """Return statistics in which no dimension is outside, and a line for each that was.

    Quantiles and limits become those of all values; a std so large that the furthest value is 10 of it away.
    """
    wide = {
        feature: {name: np.array(value, np.float64) for name, value in numbers.items()}
        for feature, numbers in statistics.items()
    }
    lines = []
    for feature, number in dict.fromkeys((x.feature, x.number) for x in dimensions if x.is_outside):
        own = [x for x in dimensions if (x.feature, x.number) == (feature, number)]
        low, high = min(x.raw[0] for x in own), max(x.raw[1] for x in own)
        before = _told(features, statistics, own[0])
        _widen(wide[feature], _mode(features, feature), number, low, high)
        lines.append(f"{feature}[{number}]: {before} widened to {_told(features, wide, own[0])}")
    tensors = {
        feature: {name: torch.as_tensor(value, dtype=torch.float32) for name, value in numbers.items()}
        for feature, numbers in wide.items()
    }
    return tensors, lines


def _widen(
    numbers: Mapping[str, np.ndarray], mode: NormalizationMode, number: int, low: float, high: float
) -> None:
    if mode == "mean_std":
        mean = numbers["mean"].ravel()[number]
        numbers["std"].ravel()[number] = max(abs(low - mean), abs(high - mean)) / _WIDENED
        return
    names = ("q01", "q99") if mode == "quantiles" else ("min", "max")
    for name, value in zip(names, (low, high), strict=True):
        numbers[name].ravel()[number] = value

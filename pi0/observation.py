"""What the model sees: preprocessed images, prompt tokens and state as one batch of tensors.

Axis legend: b batch, c cameras, l prompt tokens, s state dim (padded).
"""

from dataclasses import dataclass, replace
from enum import IntEnum

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Indicator(IntEnum):
    """The advantage indicator of a sample; NONE stands for unconditional (the indicator was withheld)."""

    NONE = 0
    POSITIVE = 1
    NEGATIVE = 2


Indicators = Indicator | Int[Tensor, " b"] | None  # one for all samples, or one for each


def each_indicator(indicator: Indicators, size: int, form: str) -> Int[Tensor, " b"] | None:
    """Return one indicator per sample, on the host; None: no sample is given any.

    `form` is how a policy takes it (`Pi0Config.indicator`); one where it takes none is a ValueError.
    """
    if indicator is None:
        return None
    if form == "none":
        raise ValueError(
            "indicator: this policy takes none; set Pi0Config.indicator to 'text' or 'embedding'"
        )
    return torch.as_tensor(indicator).expand(size).cpu()


def withhold(
    indicator: Int[Tensor, " b"],
    share: float,
    device: torch.device,
    generator: torch.Generator | None,
) -> Int[Tensor, " b"]:
    """Return the indicators with a random share of them NONE; draws are made on the generator's device."""
    draw = torch.rand(len(indicator), device=device, generator=generator).to(indicator.device)
    return indicator.where(draw >= share, int(Indicator.NONE))


@dataclass(frozen=True)
class Observation:
    """A batch of model inputs; build it with `PI0Policy.preprocess`, or by hand for tests and benchmarks."""

    images: Float[Tensor, "b c 3 height width"]  # in [-1, 1]; a missing camera is masked
    image_mask: Bool[Tensor, "b c"]  # False: this camera is missing from this sample
    tokens: Int[Tensor, "b l"]  # right-padded
    token_mask: Bool[Tensor, "b l"]  # False: padding
    state: Float[Tensor, "b s"]  # normalised, zero-padded
    indicator: Int[Tensor, " b"] | None = None  # values of `Indicator`; None is the same as all NONE
    is_dense: bool = False  # promises that nothing is masked, so that attention needs no mask

    @property
    def batch_size(self) -> int:
        """Samples in the batch."""
        return self.state.shape[0]

    def compact(self) -> "Observation":
        """Return the observation without cameras and token columns that are masked in every sample.

        Masked entries take no position and no attention in pi0, so dropping them is exact; `is_dense` is
        set if nothing masked remains. Reads the masks on the host: call it before moving to a GPU.
        """
        cameras = self.image_mask.any(dim=0)
        columns = self.token_mask.any(dim=0)
        image_mask, token_mask = self.image_mask[:, cameras], self.token_mask[:, columns]
        return replace(
            self,
            images=self.images if bool(cameras.all()) else self.images[:, cameras],
            image_mask=image_mask,
            tokens=self.tokens[:, columns],
            token_mask=token_mask,
            is_dense=bool(image_mask.all()) and bool(token_mask.all()),
        )

    def pad_prompt(self, length: int) -> "Observation":
        """Return the observation with `length` token columns, and masked whether or not anything is.

        Whatever the prompts are, the computation then has one shape, and so has its rounding.
        """
        missing = (0, length - self.tokens.shape[1])
        return replace(
            self,
            tokens=F.pad(self.tokens, missing),
            token_mask=F.pad(self.token_mask, missing),
            is_dense=False,
        )

    def to(self, device: torch.device | str) -> "Observation":
        """Return the observation with all tensors on the device."""
        tensors = {k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **tensors)

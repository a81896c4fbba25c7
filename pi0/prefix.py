"""The prefix: images and prompt as keys and values, which the action expert and others read.

Axis legend: b batch, n image tokens, d width.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pi0.config import SiglipConfig
from pi0.gemma import KeyValues, LanguageModel, Rope
from pi0.observation import Observation
from pi0.vision import VisionTower
from pi0.weights import LaterWeights


@dataclass
class Prefix:
    """What the action expert reads: keys and values of the tokens so far, and how many are valid."""

    kv: KeyValues
    num_valid: Int[Tensor, " b"]
    rope: Rope | None = None  # rotations of the action tokens, where they are needed more than once

    def repeat(self, times: int) -> "Prefix":
        """Return the batch repeated as a whole, for several noise draws or for guidance."""
        return Prefix(self.kv.repeat(times), self.num_valid.repeat(times))

    def select(self, samples: Int[Tensor, " n"]) -> "Prefix":
        """Return that of some samples, by their numbers in the batch."""
        return Prefix(self.kv.select(samples), self.num_valid[samples])


class PrefixConfig(Protocol):
    """What encoding a prefix needs to know."""

    @property
    def vision(self) -> SiglipConfig:
        """Size of the vision tower."""
        ...

    @property
    def dtype(self) -> str:
        """Name of the dtype of the computation."""
        ...


class PrefixModel[C: PrefixConfig](nn.Module):
    """A vision tower and a language model that encode images and prompt; what reads them is a subclass's."""

    config: C
    vision: VisionTower
    vlm: LanguageModel
    later: LaterWeights | None = None  # what reads the weights of a model that has none yet

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the computation, which may differ from that of the stored weights."""
        return getattr(torch, self.config.dtype)

    def image_tokens(self, observation: Observation) -> Float[Tensor, "b n d"]:
        """Return the tokens of all cameras in the language model's width.

        They are computed in float32 in every mode, as lerobot does: the tokens of an image share one large
        component, which rounding shifts alike in all of them, and attention does not average that out.
        """
        tokens = self.vision(observation.images.flatten(0, 1), torch.float32)
        return tokens.unflatten(0, observation.images.shape[:2]).flatten(1, 2)

    def prefix(self, observation: Observation, image_tokens: Float[Tensor, "b n d"] | None = None) -> Prefix:
        """Return the keys and values of images and prompt; reuse them for any number of states and samples.

        `image_tokens` saves their computation where another prefix already needed them.
        """
        if image_tokens is None:
            image_tokens = self.image_tokens(observation)
        tokens = self.vlm.embed_tokens(observation.tokens, self.dtype)
        x = torch.cat([image_tokens.to(self.dtype), tokens], dim=1)
        b, p, _ = x.shape
        if observation.is_dense:
            positions = torch.arange(p, device=x.device).expand(b, p)
            return Prefix(
                self.vlm(x, positions, None, self.dtype),
                torch.full((b,), p, device=x.device, dtype=torch.long),
            )
        patches = self.config.vision.num_patches
        image_mask = observation.image_mask.repeat_interleave(patches, dim=1)
        mask = torch.cat([image_mask, observation.token_mask], dim=1)
        # Padding takes no position (openpi pi0.py: positions = cumsum(mask) - 1).
        return Prefix(self.vlm(x, mask.cumsum(1) - 1, mask, self.dtype), mask.sum(1))


def concatenate_prefixes(contexts: list[Prefix]) -> Prefix:
    """Return the contexts stacked along the batch; shorter ones are padded and masked."""
    if len(contexts) == 1:
        return contexts[0]
    longest = max(context.kv.length for context in contexts)
    padded = [context.kv.pad_to(longest) for context in contexts]
    is_masked = any(kv.mask is not None for kv in padded)
    mask = torch.cat([kv.full_mask() for kv in padded]) if is_masked else None
    return Prefix(
        KeyValues(
            keys=[torch.cat(layer) for layer in zip(*(kv.keys for kv in padded), strict=True)],
            values=[torch.cat(layer) for layer in zip(*(kv.values for kv in padded), strict=True)],
            mask=mask,
        ),
        torch.cat([context.num_valid for context in contexts]),
    )

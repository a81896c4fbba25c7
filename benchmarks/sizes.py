"""Sizes from a test's to the real pi0's, and random inputs that every policy here understands.

Axes: b batch, c cameras, h action horizon, a action dim, s state dim, l prompt tokens.
"""

import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class GemmaSize:
    """Dimensions of one Gemma stack, under the attribute names that lerobot reads."""

    width: int
    depth: int
    mlp_dim: int
    head_dim: int
    num_heads: int = 8  # lerobot's joint layer is written for 8 heads and 1 K/V head
    num_kv_heads: int = 1


@dataclasses.dataclass(frozen=True)
class SiglipSize:
    """Dimensions of the image encoder; image_size in pixels, square."""

    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    patch_size: int = 14
    image_size: int = 224

    @property
    def num_patches(self) -> int:
        """Return the image tokens per camera."""
        return (self.image_size // self.patch_size) ** 2


@dataclasses.dataclass(frozen=True)
class Size:
    """Dimensions of one policy and of its inputs."""

    vlm: GemmaSize
    expert: GemmaSize
    vision: SiglipSize
    vocab_size: int
    cameras: int = 3
    max_tokens: int = 48
    chunk_size: int = 50
    max_state_dim: int = 32
    max_action_dim: int = 32


SIZES = {
    # for tests
    "tiny": Size(
        GemmaSize(64, 2, 128, head_dim=16),
        GemmaSize(32, 2, 64, head_dim=16),
        SiglipSize(32, 2, 2, 64, image_size=56),
        vocab_size=512,
        cameras=2,
        max_tokens=12,
        chunk_size=10,
    ),
    # the real sequence lengths with narrow layers: attention and overhead dominate
    "mid": Size(
        GemmaSize(256, 6, 1024, head_dim=32),
        GemmaSize(128, 6, 512, head_dim=32),
        SiglipSize(192, 4, 4, 768),
        vocab_size=4096,
    ),
    # wide enough that matrix products dominate on a CPU
    "big": Size(
        GemmaSize(512, 8, 4096, head_dim=64),
        GemmaSize(256, 8, 1024, head_dim=64),
        SiglipSize(384, 6, 6, 1536),
        vocab_size=8192,
    ),
    "real": Size(
        GemmaSize(2048, 18, 16384, head_dim=256),
        GemmaSize(1024, 18, 4096, head_dim=256),
        SiglipSize(1152, 27, 16, 4304),
        vocab_size=257152,
    ),
}


@dataclasses.dataclass(frozen=True)
class Inputs:
    """One batch for any of the policies; a missing camera's image is -1 and its mask False."""

    images: Float[Tensor, "b c 3 height width"]
    image_mask: Bool[Tensor, "b c"]
    tokens: Int[Tensor, "b l"]
    token_mask: Bool[Tensor, "b l"]
    state: Float[Tensor, "b s"]
    actions: Float[Tensor, "b h a"]
    noise: Float[Tensor, "b h a"]
    time: Float[Tensor, " b"]

    def to(self, device: str | torch.device) -> "Inputs":
        """Return these inputs on another device."""
        return Inputs(*(getattr(self, f.name).to(device) for f in dataclasses.fields(self)))

    def first(self) -> "Inputs":
        """Return the first sample alone."""
        return Inputs(*(getattr(self, f.name)[:1] for f in dataclasses.fields(self)))

    def trimmed(self) -> "Inputs":
        """Return these inputs without the cameras and prompt columns masked in every sample."""
        cameras, columns = self.image_mask.any(0), self.token_mask.any(0)
        return dataclasses.replace(
            self,
            images=self.images[:, cameras],
            image_mask=self.image_mask[:, cameras],
            tokens=self.tokens[:, columns],
            token_mask=self.token_mask[:, columns],
        )


def make_inputs(
    size: Size,
    batch: int = 2,
    cameras_real: int | Sequence[int] | None = None,
    prompt_tokens: int | Sequence[int] | None = None,
    seed: int = 0,
) -> Inputs:
    """Return random inputs on the CPU with right-padded prompts.

    Args:
        size: Dimensions of the policy.
        batch: Number of samples.
        cameras_real: Leading camera slots that hold an image, for all or per sample; the others are
            masked. Default: all but the last, as in LIBERO (2 of 3).
        prompt_tokens: Valid prompt tokens, for all or per sample. Default: 5/12 of
            ``size.max_tokens``, which is 20 of 48.
        seed: Seed of all values.

    """
    real = _per_sample("cameras_real", cameras_real, size.cameras - 1, batch, size.cameras)
    lengths = _per_sample("prompt_tokens", prompt_tokens, size.max_tokens * 5 // 12, batch, size.max_tokens)
    g = torch.Generator().manual_seed(seed)
    pixels = size.vision.image_size
    image_mask = torch.arange(size.cameras) < real[:, None]
    images = torch.rand(batch, size.cameras, 3, pixels, pixels, generator=g) * 2 - 1
    token_mask = torch.arange(size.max_tokens) < lengths[:, None]
    tokens = torch.randint(1, size.vocab_size, (batch, size.max_tokens), generator=g)
    chunk = (batch, size.chunk_size, size.max_action_dim)
    return Inputs(
        images=images.masked_fill(~image_mask[:, :, None, None, None], -1.0),
        image_mask=image_mask,
        tokens=tokens.masked_fill(~token_mask, 0),
        token_mask=token_mask,
        state=torch.randn(batch, size.max_state_dim, generator=g),
        actions=torch.randn(chunk, generator=g),
        noise=torch.randn(chunk, generator=g),
        time=torch.rand(batch, generator=g) * 0.999 + 0.001,
    )


def _per_sample(name: str, value: int | Sequence[int] | None, default: int, batch: int, most: int) -> Tensor:
    if value is None:
        value = default
    values = [value] * batch if isinstance(value, int) else list(value)
    if len(values) != batch or not all(1 <= v <= most for v in values):
        raise ValueError(f"{name}: expected {batch} numbers from 1 to {most}, found {values}")
    return torch.tensor(values)

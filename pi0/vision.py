"""SigLIP vision tower and its projection into the language model's width.

Axis legend: b images, p patches, d width.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pi0.config import SiglipConfig
from pi0.layers import Linear


class LayerNorm(nn.LayerNorm):
    """LayerNorm with eps 1e-6 and float32 statistics that returns its input's dtype."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)

    def forward(self, x: Float[Tensor, "b p d"]) -> Float[Tensor, "b p d"]:  # noqa: D102
        return F.layer_norm(
            x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps
        ).to(x.dtype)


class VisionBlock(nn.Module):
    """Pre-norm transformer block with bidirectional attention over the patches of one image."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        d = config.width
        self.num_heads = config.num_heads
        self.norm1 = LayerNorm(d)
        self.qkv = Linear(d, 3 * d)
        self.o = Linear(d, d)
        self.norm2 = LayerNorm(d)
        self.fc1 = Linear(d, config.mlp_dim)
        self.fc2 = Linear(config.mlp_dim, d)

    def forward(self, x: Float[Tensor, "b p d"]) -> Float[Tensor, "b p d"]:
        """Return the block's output."""
        b, p, d = x.shape
        qkv = self.qkv(self.norm1(x)).view(b, p, 3, self.num_heads, d // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, p, d))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x)), approximate="tanh"))


class VisionTower(nn.Module):
    """SigLIP without pooling head, then the linear projector: an image becomes `num_patches` tokens."""

    def __init__(self, config: SiglipConfig, out_width: int, *, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.gradient_checkpointing = gradient_checkpointing
        # The patch convolution as one matrix product; patch entries in order (channel, row, column).
        self.patch = Linear(3 * config.patch_size**2, config.width)
        self.position = nn.Parameter(torch.empty(config.num_patches, config.width))
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.norm = LayerNorm(config.width)
        self.projector = Linear(config.width, out_width)

    def forward(
        self, images: Float[Tensor, "b 3 height width"], dtype: torch.dtype
    ) -> Float[Tensor, "b p out_width"]:
        """Return the image tokens in the given compute dtype; pixels in [-1, 1].

        Patches and positions are embedded in float32 (as in openpi), the blocks run in `dtype`.
        """
        b, _, height, width = images.shape
        s = self.patch_size
        patches = images.float().view(b, 3, height // s, s, width // s, s).permute(0, 2, 4, 1, 3, 5)
        x = self.patch(patches.flatten(1, 2).flatten(2)) + self.position.float()
        x = x.to(dtype)
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return self.projector(self.norm(x))

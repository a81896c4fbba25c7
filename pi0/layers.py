"""Building blocks shared by the vision tower, the language model and the action expert.

Weights may be stored in float32 while the computation runs in bfloat16 (float32 master weights): a `Linear`
computes in the dtype of its input, and norms take their statistics in float32.

Axis legend: b batch, n heads, q query tokens, t key tokens, p tokens, d width, e head dim.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class Linear(nn.Linear):
    """A linear layer that computes in its input's dtype, with optional low-rank adapters (LoRA).

    `splits` are the output sizes of the projections fused into this layer; each has adapters of its own, as
    if the projections were separate (openpi lora.py). Adapters start at zero output (B = 0).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        lora_rank: int = 0,
        lora_alpha: float = 0.0,
        splits: tuple[int, ...] = (),
    ) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.splits = splits or (out_features,)
        self.lora_rank = lora_rank
        if lora_rank:
            self.lora_scale = lora_alpha / lora_rank
            self.lora_a = nn.Parameter(torch.empty(len(self.splits) * lora_rank, in_features))
            self.lora_b = nn.Parameter(torch.zeros(out_features, lora_rank))

    def lora_delta(
        self, lora_a: Float[Tensor, "r i"], lora_b: Float[Tensor, "o rank"]
    ) -> Float[Tensor, "o i"]:
        """Return the weight update that these values of the adapters stand for."""
        parts = zip(lora_b.split(self.splits), lora_a.split(self.lora_rank), strict=True)
        return self.lora_scale * torch.cat([b @ a for b, a in parts])

    def forward(self, x: Float[Tensor, "*p i"]) -> Float[Tensor, "*p o"]:
        """Return the projection of x."""
        y = F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))
        if self.lora_rank:
            low = F.linear(x, self.lora_a.to(x.dtype)).split(self.lora_rank, dim=-1)
            ups = self.lora_b.to(x.dtype).split(self.splits)
            y = y + self.lora_scale * torch.cat([F.linear(u, b) for u, b in zip(low, ups, strict=True)], -1)
        return y


class RMSNorm(nn.Module):
    """Gemma's norm: `x / rms(x) * (1 + weight)`, statistics in float32; the weight starts at 0."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.eps = eps
        self._kept_scale: Tensor | None = None  # see kept_scales

    @property
    def scale(self) -> Float[Tensor, " d"]:
        """What the normed x is multiplied by, in float32."""
        return 1.0 + self.weight.float() if self._kept_scale is None else self._kept_scale

    def forward(
        self, x: Float[Tensor, "b p d"], condition: None, dtype: torch.dtype
    ) -> tuple[Float[Tensor, "b p d"], None]:
        """Return the normed x in the given dtype, and no gate."""
        return F.rms_norm(x.float(), x.shape[-1:], self.scale, self.eps).to(dtype), None


@contextmanager
def kept_scales(stack: nn.Module) -> Iterator[None]:
    """Compute the scales of all norms in a stack once for what is done meanwhile; weights must not change."""
    norms = [module for module in stack.modules() if isinstance(module, RMSNorm)]
    try:
        for norm in norms:
            norm._kept_scale = norm.scale
        yield
    finally:
        for norm in norms:
            norm._kept_scale = None


class AdaptiveRMSNorm(nn.Module):
    """pi05's norm: scale, shift and the gate of the residual branch come from the embedded flow time.

    (adaRMS; openpi gemma.py: RMSNorm with cond)
    """

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.dense = Linear(width, 3 * width)
        self.eps = eps

    def forward(
        self, x: Float[Tensor, "b p d"], condition: Float[Tensor, "b d"], dtype: torch.dtype
    ) -> tuple[Float[Tensor, "b p d"], Float[Tensor, "b 1 d"]]:
        """Return the modulated x in the given dtype, and the gate."""
        scale, shift, gate = self.dense(condition.float())[:, None].chunk(3, dim=-1)
        normed = F.rms_norm(x.float(), x.shape[-1:], eps=self.eps)
        return torch.addcmul(shift, normed, 1 + scale).to(dtype), gate


def rope_tables(
    positions: Int[Tensor, "b p"], head_dim: int
) -> tuple[Float[Tensor, "b p 1 {head_dim}"], Float[Tensor, "b p 1 {head_dim}"]]:
    """Return the cosines and signed sines that rotate queries and keys at these positions.

    Frequencies are `10000^(-2i / head_dim)`; angles are always float32. (lerobot and openpi PyTorch round the
    frequencies to bfloat16 in bfloat16 mode, which is off by up to 1.2 rad at position 866.)
    """
    exponent = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angle = positions[:, :, None].float() * torch.pow(10000.0, -exponent)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos, cos], -1)[:, :, None], torch.cat([-sin, sin], -1)[:, :, None]


def rotate(
    x: Float[Tensor, "b p n e"], cos: Float[Tensor, "b p 1 e"], sin: Float[Tensor, "b p 1 e"]
) -> Float[Tensor, "b p n e"]:
    """Return x with the two halves of each head rotated against each other, in x's dtype."""
    half = x.shape[-1] // 2
    swapped = torch.cat([x[..., half:], x[..., :half]], -1)
    return (x * cos + swapped * sin).to(x.dtype)


def attention(
    query: Float[Tensor, "b q n e"],
    key: Float[Tensor, "b t e"],
    value: Float[Tensor, "b t e"],
    mask: Bool[Tensor, "b t"] | None,
    is_repeated: bool = False,
) -> Float[Tensor, "b q n*e"]:
    """Return multi-query attention: n query heads share one key and value head.

    The heads are folded into the query axis, so keys and values are never repeated. Only keys are masked:
    padded queries then see valid keys, which keeps their softmax finite, and nobody reads their output.
    """
    b, q, n, e = query.shape
    if is_repeated and query.device.type == "cpu":
        # There the queries need not be copied for that.
        shared = (x[:, None].expand(b, n, -1, e) for x in (key, value))
        rows = None if mask is None else mask[:, None, None, :]
        out = F.scaled_dot_product_attention(query.transpose(1, 2), *shared, attn_mask=rows)
        return out.transpose(1, 2).reshape(b, q, n * e)
    out = F.scaled_dot_product_attention(
        query.reshape(b, 1, q * n, e),
        key[:, None],
        value[:, None],
        attn_mask=None if mask is None else mask[:, None, None, :],
    )
    return out.reshape(b, q, n * e)

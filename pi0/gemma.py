"""Gemma stacks: the language model that encodes the prefix, and the action expert that reads its keys.

Both are the same block at two widths. The expert attends to the prefix through the keys and values of each
layer, never the other way round, so the prefix can be encoded once and used many times.

Axis legend: b batch, p tokens of this pass, t context tokens, n heads, e head dim, d width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pi0.config import GemmaConfig
from pi0.layers import AdaptiveRMSNorm, Linear, RMSNorm, attention, rope_tables, rotate

Rope = tuple[Tensor, Tensor]  # cosines and signed sines of one set of positions, see rope_tables


@dataclass
class KeyValues:
    """Keys and values of every layer for tokens that later passes attend to.

    `mask` is False at padding; None promises that there is none.
    """

    keys: list[Float[Tensor, "b t e"]]
    values: list[Float[Tensor, "b t e"]]
    mask: Bool[Tensor, "b t"] | None

    @property
    def length(self) -> int:
        """Tokens per sample, padding included."""
        return self.keys[0].shape[1]

    def layer(self, index: int) -> tuple[Float[Tensor, "b t e"], Float[Tensor, "b t e"]]:
        """Return key and value of one layer."""
        return self.keys[index], self.values[index]

    def append(self, other: "KeyValues") -> "KeyValues":
        """Return the keys and values with those of a later pass behind them; that pass has no padding."""
        return KeyValues(
            keys=[torch.cat(pair, 1) for pair in zip(self.keys, other.keys, strict=True)],
            values=[torch.cat(pair, 1) for pair in zip(self.values, other.values, strict=True)],
            mask=self.append_mask(other.length),
        )

    def repeat(self, times: int) -> "KeyValues":
        """Return the batch repeated as a whole: sample i is found again at i + b, i + 2b, ..."""
        if times == 1:
            return self
        mask = None if self.mask is None else self.mask.repeat(times, 1)
        return self._changed(lambda x: x.repeat(times, 1, 1), mask)

    def select(self, samples: Int[Tensor, " n"]) -> "KeyValues":
        """Return those of some samples, by their numbers in the batch."""
        return self._changed(lambda x: x[samples], None if self.mask is None else self.mask[samples])

    def reserve(self, num_tokens: int) -> "KeyValues":
        """Return a copy with room for `num_tokens` at the end, which each sampling step overwrites."""
        return self._changed(lambda x: F.pad(x, (0, 0, 0, num_tokens)), self.append_mask(num_tokens))

    def pad_to(self, length: int) -> "KeyValues":
        """Return a copy padded at the end to `length` tokens; the padding is masked."""
        extra = length - self.length
        if extra == 0:
            return self
        mask = F.pad(self.full_mask(), (0, extra), value=False)
        return self._changed(lambda x: F.pad(x, (0, 0, 0, extra)), mask)

    def _changed(self, change: Callable[[Tensor], Tensor], mask: Bool[Tensor, "b t"] | None) -> "KeyValues":
        return KeyValues([change(k) for k in self.keys], [change(v) for v in self.values], mask)

    def full_mask(self) -> Bool[Tensor, "b t"]:
        """Return the mask, also where None stands for all valid."""
        if self.mask is not None:
            return self.mask
        return torch.ones(self.keys[0].shape[:2], dtype=torch.bool, device=self.keys[0].device)

    def append_mask(self, num_tokens: int) -> Bool[Tensor, "b t"] | None:
        """Return the mask with `num_tokens` valid tokens behind it."""
        return None if self.mask is None else F.pad(self.mask, (0, num_tokens), value=True)


class Block(nn.Module):
    """One Gemma layer with its projections fused: multi-query attention, then a GeGLU MLP."""

    def __init__(self, config: GemmaConfig, *, adaptive: bool = False) -> None:
        super().__init__()
        norm = AdaptiveRMSNorm if adaptive else RMSNorm
        d, kv, m = config.width, config.head_dim, config.mlp_dim
        q = config.num_heads * kv
        self.head_dim = kv
        self.norm1 = norm(d)
        self.qkv = _linear(config, d, (q, kv, kv))
        self.o = _linear(config, q, (d,))
        self.norm2 = norm(d)
        self.gate_up = _linear(config, d, (m, m))
        self.down = _linear(config, m, (d,))

    def heads(
        self, x: Float[Tensor, "b p d"], rope: Rope, condition: Tensor | None, dtype: torch.dtype
    ) -> tuple[Float[Tensor, "b p n e"], Float[Tensor, "b p e"], Float[Tensor, "b p e"], Tensor | None]:
        """Return rotated queries, rotated key, value, and the gate of the attention branch."""
        h, gate = self.norm1(x, condition, dtype)
        qkv = self.qkv(h).unflatten(-1, (-1, self.head_dim))
        rotated = rotate(qkv[:, :, :-1], *rope)
        return rotated[:, :, :-1], rotated[:, :, -1], qkv[:, :, -1], gate

    def forward(
        self,
        x: Float[Tensor, "b p d"],
        rope: Rope,
        past: tuple[Tensor, Tensor] | None,
        mask: Bool[Tensor, "b k"] | None,
        condition: Float[Tensor, "b d"] | None,
        dtype: torch.dtype,
        in_place: bool,
        keys_only: bool = False,
    ) -> tuple[Float[Tensor, "b p d"], Float[Tensor, "b p e"], Float[Tensor, "b p e"]]:
        """Return the output, and the key and value of this pass.

        `past` are the key and value of earlier passes. With `in_place` they end with room for this pass,
        which is overwritten; else they are concatenated. With `keys_only` the output is x as it came.
        """
        query, key, value, gate = self.heads(x, rope, condition, dtype)
        if keys_only:
            return x, key, value
        keys, values = key, value
        if past is not None and in_place:
            keys, values = past
            room = [old[:, -x.shape[1] :] for old in past]
            torch._foreach_copy_(room, [key, value])  # pyright: ignore[reportPrivateImportUsage]
        elif past is not None:
            keys, values = (torch.cat(pair, dim=1) for pair in zip(past, (key, value), strict=True))
        x = _add(x, self.o(attention(query, keys, values, mask, in_place)), gate)
        h, gate = self.norm2(x, condition, dtype)
        gates, up = self.gate_up(h).chunk(2, dim=-1)
        return _add(x, self.down(F.gelu(gates, approximate="tanh") * up), gate), key, value


class KeyValueBlock(nn.Module):
    """The language model's last layer: only its keys and values are ever read, so it has nothing else."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.width)
        self.kv = _linear(config, config.width, (config.head_dim, config.head_dim))

    def forward(
        self, x: Float[Tensor, "b p d"], rope: Rope, dtype: torch.dtype
    ) -> tuple[Float[Tensor, "b p e"], Float[Tensor, "b p e"]]:
        """Return the layer's rotated key, and its value."""
        key, value = self.kv(self.norm1(x, None, dtype)[0]).chunk(2, dim=-1)
        return rotate(key[:, :, None], *rope)[:, :, 0], value


class LanguageModel(nn.Module):
    """Gemma over the prefix (image tokens and prompt, attending to each other both ways)."""

    def __init__(self, config: GemmaConfig, vocab_size: int, *, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.gradient_checkpointing = gradient_checkpointing
        self.embed = nn.Embedding(vocab_size, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth - 1))
        self.last = KeyValueBlock(config)

    def embed_tokens(self, tokens: Int[Tensor, "b p"], dtype: torch.dtype) -> Float[Tensor, "b p d"]:
        """Return token embeddings times sqrt(width), the factor rounded to the dtype (as in openpi JAX)."""
        scale = torch.tensor(self.embed.embedding_dim**0.5, dtype=dtype).item()
        return self.embed(tokens).to(dtype) * scale

    def forward(
        self,
        x: Float[Tensor, "b p d"],
        positions: Int[Tensor, "b p"],
        mask: Bool[Tensor, "b p"] | None,
        dtype: torch.dtype,
    ) -> KeyValues:
        """Return the keys and values of the prefix."""
        rope = rope_tables(positions, self.head_dim)
        keys, values = [], []
        for block in self.blocks:
            x, k, v = _run(self, block, x, rope, None, mask, None, dtype, False)
            keys.append(k)
            values.append(v)
        k, v = self.last(x, rope, dtype)
        return KeyValues([*keys, k], [*values, v], mask)


class ActionExpert(nn.Module):
    """The smaller Gemma that reads the prefix and turns action tokens into velocities."""

    def __init__(self, config: GemmaConfig, *, adaptive: bool, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.gradient_checkpointing = gradient_checkpointing
        self.blocks = nn.ModuleList(Block(config, adaptive=adaptive) for _ in range(config.depth))
        self.norm = (AdaptiveRMSNorm if adaptive else RMSNorm)(config.width)

    def encode(
        self,
        x: Float[Tensor, "b p d"],
        positions: Int[Tensor, "b p"],
        past: KeyValues,
        dtype: torch.dtype,
    ) -> KeyValues:
        """Return the keys and values of tokens whose output nobody reads (the state token)."""
        rope = rope_tables(positions, self.head_dim)
        mask = past.append_mask(x.shape[1])
        keys, values = [], []
        for i, block in enumerate(self.blocks[:-1]):
            x, k, v = _run(self, block, x, rope, past.layer(i), mask, None, dtype, False)
            keys.append(k)
            values.append(v)
        # By `forward` and its hooks, in which FSDP gathers a block's parameters; not by a compiled one, which
        # would be compiled once more for these few products.
        last = self.blocks[-1]
        _, k, v = last._call_impl(x, rope, None, None, None, dtype, False, keys_only=True)
        return KeyValues([*keys, k], [*values, v], None)

    def forward(
        self,
        x: Float[Tensor, "b p d"],
        positions: Int[Tensor, "b p"] | Rope,
        past: KeyValues,
        condition: Float[Tensor, "b d"] | None,
        dtype: torch.dtype,
        *,
        in_place: bool = False,
    ) -> Float[Tensor, "b p d"]:
        """Return the normed output of the action tokens; `in_place`: `past` has reserved room for them.

        `positions` are those of the tokens, or their `rope_tables`.
        """
        rope = positions if isinstance(positions, tuple) else rope_tables(positions, self.head_dim)
        mask = past.mask if in_place else past.append_mask(x.shape[1])
        for i, block in enumerate(self.blocks):
            x, _, _ = _run(self, block, x, rope, past.layer(i), mask, condition, dtype, in_place)
        return self.norm(x, condition, x.dtype)[0]


def _linear(config: GemmaConfig, in_features: int, splits: tuple[int, ...]) -> Linear:
    return Linear(
        in_features,
        sum(splits),
        bias=False,
        lora_rank=config.lora_rank,
        lora_alpha=config.lora_alpha,
        splits=splits,
    )


def _run(
    stack: LanguageModel | ActionExpert, block: nn.Module, *inputs: object
) -> tuple[Tensor, Tensor, Tensor]:
    if stack.gradient_checkpointing and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)  # pyright: ignore[reportReturnType]
    return block(*inputs)


def _add(x: Tensor, branch: Tensor, gate: Tensor | None) -> Tensor:
    return x + (branch if gate is None else branch * gate)

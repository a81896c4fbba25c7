"""Sizes of a value function, in its two forms."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pi0.config import GemmaConfig, SiglipConfig
from pi0.plain import from_plain
from pi0.policy import PI0Policy


@dataclass(frozen=True)
class ValueConfig:
    """Sizes of a `ValueFunction`; see `expert_value_config` and `separate_value_config`."""

    expert: GemmaConfig  # reads the prefix; as deep as the language model, with its head_dim
    vlm: GemmaConfig | None = None  # None: the prefix is a policy's
    siglip: SiglipConfig | None = None
    vocab_size: int = 0
    tokenizer_max_length: int = 48
    max_state_dim: int = 32
    num_bins: int = 201
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if (self.vlm is None) != (self.siglip is None):
            raise ValueError("vlm and siglip: expected both (separate form) or neither (expert form)")
        if self.vlm is not None:
            require_readable(self.expert, self.vlm)
        if self.num_bins < 2:
            raise ValueError(f"num_bins: expected at least 2, found {self.num_bins}")

    @property
    def form(self) -> Literal["expert", "separate"]:
        """Return whose prefix is read: a policy's, or one of its own."""
        return "expert" if self.vlm is None else "separate"

    @property
    def vision(self) -> SiglipConfig:
        """Size of the own vision tower."""
        if self.siglip is None:
            raise ValueError("siglip: this value function reads a policy's prefix and has no vision tower")
        return self.siglip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ValueConfig":
        """Return the configuration whose `dataclasses.asdict` this is; else an UnusableError."""
        return from_plain(cls, values)


def require_readable(expert: GemmaConfig, vlm: GemmaConfig) -> None:
    """Refuse an expert that cannot attend to the keys and values of a language model of this size."""
    for name in ("depth", "head_dim"):
        if getattr(expert, name) != getattr(vlm, name):
            raise ValueError(
                f"expert.{name}: expected {getattr(vlm, name)} as in the language model whose keys it reads, "
                f"found {getattr(expert, name)}"
            )


def expert_value_config(policy: PI0Policy, width: int = 64, **changes: Any) -> ValueConfig:
    """Return the sizes of an expert of some width that reads this policy's prefix."""
    vlm = policy.config.vlm
    expert = GemmaConfig(
        width=width, depth=vlm.depth, mlp_dim=4 * width, num_heads=vlm.num_heads, head_dim=vlm.head_dim
    )
    sizes: dict[str, Any] = {"max_state_dim": policy.config.max_state_dim, "dtype": policy.config.dtype}
    return ValueConfig(expert=expert, **{**sizes, **changes})


def separate_value_config(policy: PI0Policy, **changes: Any) -> ValueConfig:
    """Return the sizes of a value function that resembles a policy and shares nothing with it."""
    sizes = {
        "vlm": policy.config.vlm,
        "siglip": policy.config.vision,
        "vocab_size": policy.config.vocab_size,
        "tokenizer_max_length": policy.config.tokenizer_max_length,
    }
    return expert_value_config(policy, policy.config.expert.width, **{**sizes, **changes})

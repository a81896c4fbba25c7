"""Sizes of the policy's parts, from a toy to the real pi0; every size is a configuration of one model."""

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from pi0.errors import UnusableError
from pi0.plain import from_plain

if TYPE_CHECKING:
    from pi0.model import Pi0Model
    from pi0.weights import WeightLoader

IndicatorMode = Literal["none", "text", "embedding"]


def _require_positive(config: object, *names: str) -> None:
    for name in names:
        if not getattr(config, name) >= 1:
            raise UnusableError(f"{name}: expected at least 1, found {getattr(config, name)}")


@dataclass(frozen=True)
class GemmaConfig:
    """Size of one Gemma stack: the language model or the action expert (openpi gemma.py: Config)."""

    width: int
    depth: int
    mlp_dim: int
    num_heads: int = 8
    num_kv_heads: int = 1
    head_dim: int = 256
    lora_rank: int = 0  # 0 = no low-rank adapters
    lora_alpha: float = 0.0  # adapters are scaled by lora_alpha / lora_rank

    def __post_init__(self) -> None:
        _require_positive(self, "width", "depth", "mlp_dim", "num_heads", "head_dim")
        if self.num_kv_heads != 1:
            raise UnusableError(
                f"num_kv_heads: expected 1 (all Gemma sizes of pi0), found {self.num_kv_heads}"
            )
        if self.lora_rank < 0:
            raise UnusableError(f"lora_rank: expected 0 (no adapters) or more, found {self.lora_rank}")
        if self.head_dim % 2:
            raise UnusableError(f"head_dim: rotary embedding needs an even number, found {self.head_dim}")


@dataclass(frozen=True)
class SiglipConfig:
    """Size of the SigLIP vision tower; images are square and split into square patches."""

    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    patch_size: int = 14
    image_size: int = 224

    def __post_init__(self) -> None:
        _require_positive(self, "width", "depth", "num_heads", "mlp_dim", "patch_size", "image_size")
        if self.image_size % self.patch_size:
            raise UnusableError(
                f"image_size: expected a multiple of patch_size {self.patch_size}, found {self.image_size}"
            )
        if self.width % self.num_heads:
            raise UnusableError(
                f"width: expected a multiple of num_heads {self.num_heads}, found {self.width}"
            )

    @property
    def num_patches(self) -> int:
        """Tokens that one image becomes."""
        return (self.image_size // self.patch_size) ** 2


GEMMA_2B = GemmaConfig(width=2048, depth=18, mlp_dim=16384)
GEMMA_300M = GemmaConfig(width=1024, depth=18, mlp_dim=4096)
SIGLIP_SO400M = SiglipConfig(width=1152, depth=27, num_heads=16, mlp_dim=4304)

# Names of lerobot's and openpi's variants; LoRA ranks as openpi's gemma.py: get_config.
VARIANTS: dict[str, GemmaConfig] = {
    "gemma_2b": GEMMA_2B,
    "gemma_300m": GEMMA_300M,
    "gemma_2b_lora": replace(GEMMA_2B, lora_rank=16, lora_alpha=16.0),
    "gemma_300m_lora": replace(GEMMA_300M, lora_rank=32, lora_alpha=32.0),
}


@dataclass(frozen=True)
class Pi0Config:
    """Architecture and sampling of a pi0 policy; the defaults are the real pi0 (3.24 B parameters)."""

    vlm: GemmaConfig = GEMMA_2B
    expert: GemmaConfig = GEMMA_300M
    vision: SiglipConfig = SIGLIP_SO400M
    vocab_size: int = 257152
    pi05: bool = False  # adaptive norms in the expert, state as text, no state token
    chunk_size: int = 50  # actions predicted at once ("action horizon" in openpi)
    n_action_steps: int = 50  # actions executed before the next prediction
    max_state_dim: int = 32  # states and actions are zero-padded to these widths
    max_action_dim: int = 32
    num_inference_steps: int = 10  # Euler steps from noise to actions
    tokenizer_max_length: int = 48  # prompt tokens (pi05: 200)
    min_period: float = 4e-3  # of the sine-cosine embedding of the flow time
    max_period: float = 4.0
    time_sampling_beta_alpha: float = 1.5  # training times: scale * Beta(alpha, 1) + offset
    time_sampling_scale: float = 0.999
    time_sampling_offset: float = 0.001
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; weights stay as they are
    gradient_checkpointing: bool = False  # recompute each block in the backward pass
    indicator: IndicatorMode = "none"  # how the advantage indicator enters: prompt text or state token
    indicator_dropout: float = 0.0  # share of training samples whose indicator is withheld

    def __post_init__(self) -> None:
        _require_positive(
            self, "vocab_size", "chunk_size", "max_state_dim", "max_action_dim", "tokenizer_max_length"
        )
        checks = [
            ("depth", self.vlm.depth == self.expert.depth, "the same in vlm and expert"),
            ("head_dim", self.vlm.head_dim == self.expert.head_dim, "the same in vlm and expert"),
            ("n_action_steps", 1 <= self.n_action_steps <= self.chunk_size, "1..chunk_size"),
            ("num_inference_steps", self.num_inference_steps >= 1, "at least 1"),
            ("indicator_dropout", 0.0 <= self.indicator_dropout <= 1.0, "in [0, 1]"),
            ("dtype", self.dtype in ("float32", "bfloat16"), "'float32' or 'bfloat16'"),
            (
                "indicator",
                self.indicator in ("none", "text", "embedding"),
                "'none', 'text' or 'embedding'",
            ),
            ("expert.width", self.expert.width % 2 == 0, "even (sine and cosine halves)"),
        ]
        for name, is_ok, expected in checks:
            if not is_ok:
                raise UnusableError(f"{name}: expected {expected}, found {self._found(name)}")
        if self.pi05 and self.indicator == "embedding":
            raise UnusableError(
                "indicator: 'embedding' is added to the state token, which pi05 does not have; use 'text'"
            )

    def _found(self, name: str) -> str:
        if name in ("depth", "head_dim"):
            return f"{getattr(self.vlm, name)} and {getattr(self.expert, name)}"
        return repr(self.expert.width if name == "expert.width" else getattr(self, name))

    # A subclass that overrides these four is a policy of its own; see pi0/registry.py.

    def create(self, seed: int | None = 0, device: str = "cpu") -> "Pi0Model":
        """Return a randomly initialised model of this size; the global random state is left alone.

        With seed None its values are undefined until weights are loaded; on device "meta" it has none.
        """
        from pi0.model import Pi0Model  # the model imports this module

        return Pi0Model(self, seed=seed, device=device)

    def inputs_spec(
        self, batch_size: int = 1, num_cameras: int = 3
    ) -> dict[str, tuple[tuple[int, ...], str]]:
        """Return name -> (shape, dtype) of the observation and actions that the model expects."""
        size = self.vision.image_size
        return {
            "images": ((batch_size, num_cameras, 3, size, size), "float32"),
            "image_mask": ((batch_size, num_cameras), "bool"),
            "tokens": ((batch_size, self.tokenizer_max_length), "int64"),
            "token_mask": ((batch_size, self.tokenizer_max_length), "bool"),
            "state": ((batch_size, self.max_state_dim), "float32"),
            "actions": ((batch_size, self.chunk_size, self.max_action_dim), "float32"),
        }

    def weight_loader(self) -> "WeightLoader":
        """Return what a checkpoint may lack or have too much; by default everything must fit exactly."""
        from pi0.weights import WeightLoader  # it imports this module

        return WeightLoader()

    def freeze_filter(self) -> str:
        """Return what `Pi0Model.freeze(None)` freezes: with adapters what they adapt, otherwise nothing."""
        return "lora" if self.vlm.lora_rank or self.expert.lora_rank else "none"

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Pi0Config":
        """Return the configuration that `to_dict` described; what does not fit is an UnusableError."""
        return from_plain(cls, values)


def pi05_config(**changes: Any) -> Pi0Config:
    """Return the real pi05: adaptive norms, discretised state in a prompt of up to 200 tokens."""
    return replace(Pi0Config(pi05=True, tokenizer_max_length=200), **changes)


def toy_config(vocab_size: int, **changes: Any) -> Pi0Config:
    """Return a policy of well under 2 M parameters for 64 px images: trains on a laptop CPU in a minute."""
    toy = Pi0Config(
        vlm=GemmaConfig(width=64, depth=2, mlp_dim=256, num_heads=4, head_dim=32),
        expert=GemmaConfig(width=64, depth=2, mlp_dim=256, num_heads=4, head_dim=32),
        vision=SiglipConfig(width=64, depth=2, num_heads=4, mlp_dim=256, patch_size=16, image_size=64),
        vocab_size=vocab_size,
        chunk_size=8,
        n_action_steps=8,
        max_state_dim=8,
        max_action_dim=8,
        num_inference_steps=5,
        tokenizer_max_length=24,
    )
    return replace(toy, **changes)

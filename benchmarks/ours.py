"""Our configuration and observation for the benchmarks' sizes and inputs; needs no peer."""

import dataclasses
from typing import Any

from sizes import Inputs, Size

from pi0.config import GemmaConfig, Pi0Config, SiglipConfig
from pi0.observation import Observation


def pi0_config(size: Size, dtype: Any = "float32", pi05: bool = False) -> Pi0Config:
    """Return our configuration of this size; dtype is that of the computation."""
    return Pi0Config(
        vlm=GemmaConfig(**dataclasses.asdict(size.vlm)),
        expert=GemmaConfig(**dataclasses.asdict(size.expert)),
        vision=SiglipConfig(**dataclasses.asdict(size.vision)),
        vocab_size=size.vocab_size,
        pi05=pi05,
        chunk_size=size.chunk_size,
        n_action_steps=size.chunk_size,
        max_state_dim=size.max_state_dim,
        max_action_dim=size.max_action_dim,
        tokenizer_max_length=size.max_tokens,
        dtype=dtype,
    )


def observation(inputs: Inputs) -> Observation:
    """Return the inputs as our observation, without what is masked in every sample."""
    fields = ("images", "image_mask", "tokens", "token_mask", "state")
    return Observation(**{name: getattr(inputs, name) for name in fields}).compact()

"""Writes checkpoints that both lerobot and this library load."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pi0 import lerobot_format
from pi0.embodiment import write_embodiments
from pi0.policy import PI0Policy
from pi0.pretrained import OWN_CONFIG, OWN_WEIGHTS, WEIGHTS
from pi0.prompts import PromptTokenizer
from pi0.registry import class_name
from pi0.weights import (
    EMBEDDING,
    LM_HEAD,
    lerobot_sources,
    lerobot_state_dict,
    merged_parameters,
    unused_shapes,
)


def save(policy: PI0Policy, directory: Path) -> None:
    """Write the policy so that lerobot's `from_pretrained` computes the same, adapters merged.

    What lerobot's model lacks (the indicator, parameters of an own configuration class, robots but the chosen
    one, or else the first) is kept beside it.

    lerobot insists on tensors that pi0 never computes with (see `unused_shapes`). They are copied from the
    checkpoint that the policy came from if it is still there; otherwise the language head is the embedding
    and the rest is zero.
    """
    kind = class_name(policy.config)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = lerobot_state_dict(policy.model, policy.config)
    tensors.update(_unused_tensors(policy, tensors))
    named = {f"model.{key}": value.cpu().contiguous() for key, value in tensors.items()}
    # Renamed into place, so that a policy can be saved over the checkpoint it came from.
    save_file(named, directory / f"{WEIGHTS}.part", metadata={"format": "pt"})
    (directory / f"{WEIGHTS}.part").replace(directory / WEIGHTS)
    parameters, known = merged_parameters(policy.model), lerobot_sources(policy.config)
    own = {name: p.cpu().contiguous() for name, p in parameters.items() if name not in known}
    (directory / OWN_WEIGHTS).unlink(missing_ok=True)
    if own:
        save_file(own, directory / OWN_WEIGHTS)
    tokenizer = _save_tokenizer(policy.tokenizer, directory)
    settings = {
        "config": policy.config.to_dict(),
        "features": policy.features.to_dict(),
        "tokenizer": tokenizer,
        **({"config_name": kind} if kind else {}),
        **write_embodiments(directory, policy.embodiments),
    }
    (directory / OWN_CONFIG).write_text(json.dumps(settings, indent=2) + "\n")
    lerobot_format.write(directory, policy.config, policy.features, policy.statistics, tokenizer)


def _unused_tensors(policy: PI0Policy, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    shapes = unused_shapes(policy.config)
    embedding = tensors[EMBEDDING]
    # lerobot copies the head over the embedding when it loads, so the head must be the embedding.
    unused = {key: torch.zeros(shape, dtype=embedding.dtype) for key, shape in shapes.items()}
    unused[LM_HEAD] = embedding.clone()
    if policy.source is not None and policy.source.exists():
        with safe_open(policy.source, framework="pt") as file:
            for key in set(shapes) - {LM_HEAD}:
                for name in {key, f"model.{key}"} & set(file.keys()):
                    unused[key] = file.get_tensor(name).to(embedding.dtype)
    return unused


def _save_tokenizer(tokenizer: PromptTokenizer, directory: Path) -> str:
    """Return the name under which the tokenizer is found again: its hub name, or the saved directory."""
    is_hub_name = re.fullmatch(r"[\w.-]+/[\w.-]+", tokenizer.name) and not Path(tokenizer.name).exists()
    if is_hub_name:
        return tokenizer.name
    tokenizer.save(directory / "tokenizer")
    return "tokenizer"

"""Saves policies so that both lerobot and this library load them."""

import json
import re
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch

from pi0 import lerobot_format
from pi0.checkpoint_names import INDEX, WEIGHTS
from pi0.embodiment import write_embodiments
from pi0.lerobot_names import EMBEDDING, LM_HEAD, canonical_keys, lerobot_sources, unused_shapes
from pi0.policy import PI0Policy
from pi0.pretrained import OWN_CONFIG, OWN_WEIGHTS, load
from pi0.prompts import PromptTokenizer
from pi0.registry import class_name
from pi0.tensor_files import (
    Deferred,
    stored_tensors,
    stored_weights,
    write_tensor_file,
    write_weights,
)
from pi0.weights import lerobot_tensors, merged_parameters, whole_parameters


def save(
    policy: PI0Policy,
    directory: Path,
    *,
    untrained: Path | None = None,
    max_shard_size: int | None = None,
    weights: Mapping[str, Deferred] | None = None,
) -> None:
    """Write the policy so that lerobot's `from_pretrained` computes the same, adapters merged.

    Where `untrained` says that weights are stored elsewhere, adapters are written as they are, because the
    weights that they add to are not trained either.

    What lerobot's model lacks (the indicator, parameters of an own configuration class, robots but the chosen
    one, or else the first) is kept beside it.

    lerobot insists on tensors that pi0 never computes with (see `unused_shapes`). They are copied from the
    checkpoint that the policy came from if it is still there; otherwise the language head is the embedding
    and the rest is zero.

    Args:
        policy: What is to be saved.
        directory: Made if it is not there.
        untrained: A directory to which parameters go that need no gradient, once however often they are saved
            there; `directory` refers to it, and is then no checkpoint of lerobot's.
        max_shard_size: Bytes of one file of weights; lerobot reads only what is in one, the default.
        weights: Values of the policy's parameters, by name, in place of its own.
    """
    kind = class_name(policy.config)
    directory.mkdir(parents=True, exist_ok=True)
    known, kept = lerobot_sources(policy.config), _untrained_keys(policy) if untrained else set()
    values = {name.removeprefix("model."): value for name, value in (weights or {}).items()}
    parameters = (whole_parameters if kept else merged_parameters)(policy.model, values)
    tensors = lerobot_tensors(parameters, policy.config)
    unused = _unused_tensors(policy, tensors[EMBEDDING])
    if kept:
        del unused[LM_HEAD]  # the embedding again, for lerobot
        kept |= set(unused)
    write_weights(
        directory,
        {f"model.{key}": value for key, value in (tensors | unused).items()},
        untrained=[f"model.{key}" for key in kept],
        store=untrained,
        max_shard_size=max_shard_size,
    )
    own = {name: parameter for name, parameter in parameters.items() if name not in known}
    (directory / OWN_WEIGHTS).unlink(missing_ok=True)
    if own:
        write_tensor_file(directory / OWN_WEIGHTS, own)
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


def _untrained_keys(policy: PI0Policy) -> set[str]:
    """Return lerobot's names of the weights that saving leaves as they were when training began."""
    sources = lerobot_sources(policy.config)
    frozen = {name for name, parameter in policy.model.named_parameters() if not parameter.requires_grad}
    return {key for name in frozen & sources.keys() for key in sources[name].keys}


def copy_complete(source: Path, target: Path) -> None:
    """Copy a policy's directory, with all its weights in one file whatever the source refers to.

    Adapters are merged into their weights, which needs the policy in memory.
    """
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(WEIGHTS, INDEX, "model-*-of-*.safetensors"))
    own = source / OWN_WEIGHTS
    if own.exists() and any("lora_" in name for name in stored_tensors(own)):
        save(load(source), target)
        return
    weights = stored_weights(source)
    if f"model.{EMBEDDING}" in weights:
        weights.setdefault(f"model.{LM_HEAD}", weights[f"model.{EMBEDDING}"])
    write_weights(target, weights)


def _unused_tensors(policy: PI0Policy, embedding: Deferred) -> dict[str, Deferred]:
    """Return what lerobot's model has and pi0 never reads: as it was in the checkpoint, else zeros."""
    shapes, dtype = unused_shapes(policy.config), embedding.dtype
    unused = {
        key: Deferred(shape, dtype, partial(torch.zeros, shape, dtype=dtype)) for key, shape in shapes.items()
    }
    source = policy.source
    if source is not None and any((source / name).exists() for name in (WEIGHTS, INDEX)):
        stored = canonical_keys(stored_weights(source), policy.config)
        unused |= {key: stored[key] for key in shapes if key in stored}
    # lerobot copies the head over the embedding when it loads, so the head must be the embedding.
    return unused | {LM_HEAD: embedding}


def _save_tokenizer(tokenizer: PromptTokenizer, directory: Path) -> str:
    """Return the name under which the tokenizer is found again: its hub name, or the saved directory."""
    is_hub_name = re.fullmatch(r"[\w.-]+/[\w.-]+", tokenizer.name) and not Path(tokenizer.name).exists()
    if is_hub_name:
        return tokenizer.name
    tokenizer.save(directory / "tokenizer")
    return "tokenizer"

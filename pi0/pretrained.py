"""Loads pi0 checkpoints of lerobot and openpi, and what `pi0.saving` saved.

A checkpoint is a directory (or hub repository) with `model.safetensors` and `config.json`. Only safetensors
and JSON are read, never a pickle.
"""

import ctypes
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from pi0 import lerobot_format, openpi_format
from pi0.checkpoint_names import INDEX, WEIGHTS
from pi0.config import Pi0Config
from pi0.embodiment import Embodiment, chosen_tag, read_embodiments, require_chosen
from pi0.errors import UnusableError
from pi0.features import FeatureConfig
from pi0.lerobot_names import canonical_keys
from pi0.model import Pi0Model
from pi0.normalize import Statistics
from pi0.plain import from_plain
from pi0.policy import PI0Policy
from pi0.prompts import PALIGEMMA_TOKENIZER, PromptTokenizer
from pi0.registry import get_config
from pi0.tensor_files import (
    CheckpointError,
    Deferred,
    read_json,
    stored_tensors,
    stored_weights,
)
from pi0.trainable import initialize
from pi0.weights import WeightLoader

OWN_CONFIG = "pi0_config.json"  # sizes and conventions that lerobot's config.json cannot express
OWN_WEIGHTS = "pi0_extra.safetensors"  # parameters that lerobot's model does not have
_MAY_BE_NEW = (r"\.lora_[ab]$", r"^indicator_embedding\.")
_M_MMAP_THRESHOLD = -3  # malloc.h
_FILES = ["*.json", "*.safetensors", "*.model", "assets/**", "tokenizer/**"]


@dataclass(frozen=True)
class _Own:
    """What pi0_config.json says."""

    config: dict[str, Any]
    features: dict[str, Any]
    tokenizer: str
    config_name: str | None = None
    embodiments: dict[str, Any] = field(default_factory=dict)
    embodiment: str | None = None
    guidance: float | dict[str, Any] | None = None
    """Chosen on validation states, see `pi0.ript.guidance`."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint directory says, before a model is built."""

    config: Pi0Config
    features: FeatureConfig  # this and the statistics: of the chosen robot, or else of the first
    statistics: Statistics
    tokenizer: str  # name or path
    embodiments: Mapping[str, Embodiment] = field(default_factory=dict)  # robots that have tags
    embodiment: str | None = None  # the chosen one


def load(
    path: str | Path,
    *,
    config: Pi0Config | None = None,
    changes: Mapping[str, Any] | None = None,
    features: FeatureConfig | None = None,
    statistics: Statistics | None = None,
    tokenizer: PromptTokenizer | str | Path | None = None,
    weights: WeightLoader | None = None,
    extra_delta_transform: bool | None = None,
    embodiment: str | None = None,
    dtypes: Callable[[Pi0Model], Mapping[str, torch.dtype]] | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    later: bool = False,
) -> PI0Policy:
    """Return the policy of a lerobot or openpi checkpoint, in evaluation mode.

    Its weights are held in the dtypes that they are stored in, or that `dtypes` names for a model of these
    sizes; `Pi0Model.freeze` prepares them for training. Loading takes hardly more memory than the policy.

    `changes` replaces single fields of the checkpoint's configuration (`{"dtype": "bfloat16"}`). `config`,
    `features` (cameras, conventions) and `statistics` each replace the whole of what it says. `weights`
    names what may be new or extra, in place of `config.weight_loader()`; LoRA adapters and an indicator
    embedding that `config` asks for are always allowed to be new. `extra_delta_transform` belongs to openpi's
    LIBERO checkpoints, whose files do not tell it. `embodiment` is the robot to act as, of those that have
    tags; None: the one that it was saved as, or the only one. With `later` the weights stay in their files
    and `policy.model.later` reads them, for processes that take a part of them each. Raises ValueError or its
    subclass CheckpointError with the file.
    """
    directory = resolve(path)
    described = describe(directory, config, features, statistics, extra_delta_transform, embodiment)
    if not isinstance(tokenizer, PromptTokenizer):
        tokenizer = PromptTokenizer.from_pretrained(tokenizer or described.tokenizer)
    embedded, tensors = lerobot_format.split_embedded_statistics(stored_weights(directory))
    described = replace(described, config=replace(described.config, **(changes or {})))
    _return_freed_blocks()
    policy = PI0Policy(
        described.config,
        described.features,
        tokenizer,
        described.statistics or embedded,
        model=described.config.create(seed=None, device="meta"),
    )
    if described.embodiments:
        policy.use_embodiments(described.embodiments, described.embodiment)
    model, own = policy.model, _own_tensors(directory, described.config)
    weights = _allowing(weights or described.config.weight_loader(), own)
    held = {} if dtypes is None else dtypes(model)
    place = torch.device(device)
    new = weights.load(model, described.config, tensors, str(directory), held, later=place if later else None)
    initialize(model, seed, only=new)
    _load_own(model, own, directory / OWN_WEIGHTS)
    policy.source = directory
    _allow_tf32(policy.config, place)
    (policy.embodiments if later else policy).to(place)
    return policy.eval()


def _allow_tf32(config: Pi0Config, device: torch.device) -> None:
    """On a GPU compute float32 products in TF32 beside bfloat16 ones; for the whole process, as torch has it.

    The image encoder is float32 in every mode. TF32 keeps what its exactness needs, 10 bits of mantissa, at
    about six times the rate. A float32 policy changes nothing.
    """
    if device.type == "cuda" and config.dtype == "bfloat16":
        torch.set_float32_matmul_precision("high")


def _return_freed_blocks() -> None:
    """Have glibc give memory back to the system when a block of a MiB or more is freed; elsewhere nothing.

    Otherwise it learns to keep blocks of up to 32 MiB, such as gradients and activations, and their gaps cost
    a real-sized training more than a GiB.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 2**20)


def require_loadable(path: str | Path) -> tuple[Checkpoint, int]:
    """Return what a checkpoint says and its number of parameters, if `load` would take it.

    Tokenizer, names and shapes are checked; the weights are not read. Errors as in `load`.
    """
    directory = resolve(path)
    described = describe(directory, None, None, None, None)
    PromptTokenizer.from_pretrained(described.tokenizer)
    config, model = described.config, described.config.create(seed=None, device="meta")
    _, tensors = lerobot_format.split_embedded_statistics(stored_weights(directory))
    weights = _allowing(config.weight_loader(), _own_tensors(directory, config))
    weights.require_fits(model, config, canonical_keys(tensors, config), str(directory))
    return described, sum(parameter.numel() for parameter in model.parameters())


def _allowing(weights: WeightLoader, own: Mapping[str, Deferred]) -> WeightLoader:
    """Return the policy with what may be new in any checkpoint: adapters, the indicator, what `own` has."""
    return replace(weights, new=(*weights.new, *_MAY_BE_NEW, *(f"^{re.escape(name)}$" for name in own)))


def resolve(path: str | Path) -> Path:
    """Return the local directory of a checkpoint; a hub repository (see `checkpoint_names`) is downloaded."""
    directory = Path(path).expanduser()
    if not directory.is_dir():
        repository, _, revision = str(path).partition("@")
        try:
            directory = Path(snapshot_download(repository, revision=revision or None, allow_patterns=_FILES))
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise UnusableError(
                f"checkpoint {str(path)!r} is neither a directory nor a hub repository that could be "
                f"downloaded "
                f"({type(error).__name__}: {error})"
            ) from error
    if not any((directory / name).exists() for name in (WEIGHTS, INDEX)):
        found = sorted(p.name for p in directory.iterdir())
        raise CheckpointError(
            f"{directory}: expected {WEIGHTS} or {INDEX}, found {found}. Other containers (.bin, .pt, orbax) "
            "are not read: convert them to safetensors with the tool that wrote them."
        )
    return directory


def describe(
    directory: Path,
    config: Pi0Config | None,
    features: FeatureConfig | None,
    statistics: Statistics | None,
    extra_delta_transform: bool | None,
    embodiment: str | None = None,
) -> Checkpoint:
    """Return what a checkpoint directory says; see `load` for what replaces it, and for what is chosen."""
    if not (directory / "config.json").exists():
        is_value = (directory / "value_config.json").exists()
        found = "a value function" if is_value else "no config.json, so its format is unknown"
        raise CheckpointError(f"{directory}: expected a policy, found {found}")
    values = lerobot_format.without_nulls(read_json(directory / "config.json"))
    is_openpi = "action_horizon" in values and not (directory / OWN_CONFIG).exists()
    if extra_delta_transform is not None and (features is not None or not is_openpi):
        raise UnusableError(
            "extra_delta_transform: only openpi checkpoints without features take it; this checkpoint or "
            "your FeatureConfig.relative_actions says it already"
        )
    if (directory / OWN_CONFIG).exists():
        read = _read_own(directory, config)
    elif values.get("type") in ("pi0", "pi05"):
        read = Checkpoint(
            config or lerobot_format.read_config(values, directory),
            features or lerobot_format.read_features(values, directory),
            lerobot_format.read_statistics(directory),
            lerobot_format.read_tokenizer_name(directory),
        )
    elif is_openpi:
        config = config or openpi_format.read_config(values, directory)
        asset = openpi_format.find_asset(directory) if statistics is None or features is None else None
        read = Checkpoint(
            config,
            features or openpi_format.read_features(directory, asset, config, extra_delta_transform),
            openpi_format.read_statistics(asset) if asset is not None else {},
            PALIGEMMA_TOKENIZER,
        )
    else:
        raise CheckpointError(
            f"{directory}/config.json: expected lerobot's (type pi0 or pi05) or openpi's "
            f"(action_horizon), found "
            f"type {values.get('type')!r} and keys {sorted(values)[:8]}"
        )
    chosen = chosen_tag(list(read.embodiments), embodiment or read.embodiment)
    changes = {"config": config, "features": features, "statistics": statistics}
    replaced = {name: value for name, value in changes.items() if value is not None}
    if {"features", "statistics"} & replaced.keys():  # they are of one robot
        require_chosen(list(read.embodiments), chosen)
    if chosen is None:
        return replace(read, **replaced)
    read = replace(read, embodiment=chosen, **{**vars(read.embodiments[chosen]), **replaced})
    robot = Embodiment(read.features, read.statistics)
    return replace(read, embodiments={**read.embodiments, chosen: robot})


def _read_own(directory: Path, config: Pi0Config | None) -> Checkpoint:
    """Return what the checkpoint of this package says; `config` goes before its own."""
    try:
        own = from_plain(_Own, read_json(directory / OWN_CONFIG))
        return Checkpoint(
            config or _own_class(own).from_dict(own.config),
            FeatureConfig.from_dict(own.features),
            lerobot_format.read_statistics(directory),
            str(directory / own.tokenizer) if (directory / own.tokenizer).is_dir() else own.tokenizer,
            read_embodiments(directory, own.embodiments),
            own.embodiment,
        )
    except UnusableError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{directory / OWN_CONFIG}: {error}") from error


def _own_class(own: _Own) -> type[Pi0Config]:
    """Return the class of configuration that the checkpoint names."""
    if own.config_name is None:
        return Pi0Config
    try:
        return type(get_config(own.config_name))
    except ValueError as error:
        raise UnusableError(f"{error}; if a plugin registers it, load that first (--plugins)") from error


def _own_tensors(directory: Path, config: Pi0Config) -> dict[str, Deferred]:
    """Return the parameters that are in no lerobot checkpoint, without an indicator that is not asked for."""
    file = directory / OWN_WEIGHTS
    tensors = stored_tensors(file) if file.exists() else {}
    if config.indicator == "embedding":
        return tensors
    return {name: x for name, x in tensors.items() if not name.startswith("indicator_embedding.")}


def _load_own(model: Pi0Model, tensors: Mapping[str, Deferred], file: Path) -> None:
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for name, tensor in tensors.items():
        if shapes.get(name) != tensor.shape:
            raise CheckpointError(
                f"{file}: {name} {list(tensor.shape)} does not fit; the configuration is a "
                f"{type(model.config).__name__} with indicator {model.config.indicator!r}"
            )
        with torch.no_grad():
            model.get_parameter(name).copy_(tensor.read())

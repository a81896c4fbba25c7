"""Reads and writes what lerobot's pi0 and pi05 checkpoints say beside their weights.

`config.json` (the policy), `policy_preprocessor.json` and `policy_postprocessor.json` (processing steps),
and the statistics files that these name. Files of earlier releases lack some steps, so names are never
assumed.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pi0.config import VARIANTS, GemmaConfig, Pi0Config
from pi0.features import ACTION, STATE, FeatureConfig, NormalizationMode
from pi0.normalize import Statistics
from pi0.prompts import PALIGEMMA_TOKENIZER
from pi0.tensor_files import CheckpointError, Deferred, read_json, read_tensors

PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
_MODES: dict[str, NormalizationMode] = {
    "MEAN_STD": "mean_std",
    "QUANTILES": "quantiles",
    "MIN_MAX": "min_max",
    "IDENTITY": "identity",
}
# Fields of lerobot's config that mean the same here, under the same name.
_SHARED = (
    "chunk_size",
    "n_action_steps",
    "max_state_dim",
    "max_action_dim",
    "num_inference_steps",
    "tokenizer_max_length",
    "min_period",
    "max_period",
    "time_sampling_beta_alpha",
    "time_sampling_scale",
    "time_sampling_offset",
    "gradient_checkpointing",
)


def without_nulls(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a file's keys but those that are null: other projects write it where they mean the default."""
    return {key: value for key, value in values.items() if value is not None}


def read_config(values: Mapping[str, Any], directory: Path) -> Pi0Config:
    """Return the model configuration; a setting that this library cannot honour is an error."""
    file = f"{directory}/config.json"
    if values.get("n_obs_steps", 1) != 1 or values.get("time_sampling_beta_beta", 1.0) != 1.0:
        raise CheckpointError(f"{file}: expected n_obs_steps 1 and time_sampling_beta_beta 1, found others")
    unsupported = [
        name for name in ("adapt_to_pi_aloha", "use_delta_joint_actions_aloha") if values.get(name)
    ]
    if unsupported or (values.get("rtc_config") or {}).get("enabled"):
        raise CheckpointError(f"{file}: not supported: {unsupported or 'rtc_config'}")
    values = {"num_inference_steps": values.get("num_steps", 10), **values}  # its name in early releases
    variants = {
        "vlm": values.get("paligemma_variant", "gemma_2b"),
        "expert": values.get("action_expert_variant", "gemma_300m"),
    }
    unknown = [v for v in variants.values() if v not in VARIANTS]
    if unknown:
        raise CheckpointError(f"{file}: variant: expected one of {sorted(VARIANTS)}, found {unknown}")
    height, width = values.get("image_resolution", (224, 224))
    if height != width:
        raise CheckpointError(f"{file}: image_resolution: expected a square, found {[height, width]}")
    base = Pi0Config(pi05=values["type"] == "pi05")
    chunk_size = values.get("chunk_size", base.chunk_size)
    values = {"n_action_steps": min(base.n_action_steps, chunk_size), **values}
    return replace(
        base,
        **{name: VARIANTS[variant] for name, variant in variants.items()},
        vision=replace(base.vision, image_size=height),
        dtype=values.get("dtype", "float32"),
        **{name: values[name] for name in _SHARED if name in values},
    )


def read_features(values: Mapping[str, Any], directory: Path) -> FeatureConfig:
    """Return cameras, widths and conventions of a lerobot policy."""
    inputs, outputs = values.get("input_features") or {}, values.get("output_features") or {}
    if STATE not in inputs or ACTION not in outputs:
        raise CheckpointError(
            f"{directory}/config.json: expected input_features with {STATE!r} and output_features with "
            f"{ACTION!r}, "
            f"found {sorted(inputs)} and {sorted(outputs)}; pass features=FeatureConfig(...)"
        )
    cameras = tuple(key for key, feature in inputs.items() if feature["type"] == "VISUAL")
    modes = without_nulls(values.get("normalization_mapping", {}))
    unknown = {mode for mode in modes.values() if mode not in _MODES}
    if unknown or modes.get("VISUAL", "IDENTITY") != "IDENTITY":
        raise CheckpointError(
            f"{directory}/config.json: normalization_mapping: expected VISUAL IDENTITY and modes of "
            f"{sorted(_MODES)}, "
            f"found {modes}"
        )
    action_dim = outputs[ACTION]["shape"][0]
    default = "QUANTILES" if values["type"] == "pi05" else "MEAN_STD"
    return FeatureConfig(
        image_keys=cameras,
        absent_cameras=tuple(key for key in cameras if ".empty_camera_" in key),
        state_dim=inputs[STATE]["shape"][0],
        action_dim=action_dim,
        state_normalization=_MODES[modes.get("STATE", default)],
        action_normalization=_MODES[modes.get("ACTION", default)],
        relative_actions=_relative_actions(values, action_dim),
    )


def _relative_actions(values: Mapping[str, Any], action_dim: int) -> tuple[bool, ...]:
    if not values.get("use_relative_actions"):
        return ()
    excluded = [name.lower() for name in values.get("relative_exclude_joints") or []]
    names = [name.lower() for name in values.get("action_feature_names") or [""] * action_dim]
    return tuple(not any(token in name for token in excluded) for name in names)


def read_statistics(directory: Path) -> Statistics:
    """Return the statistics of the preprocessor's normaliser; none if the directory has no preprocessor."""
    step = _step(directory, "normalizer_processor")
    if step is None or step.get("state_file") is None:  # lerobot leaves it out where there are no statistics
        return {}
    file = directory / step["state_file"]
    if not file.is_file():
        raise CheckpointError(
            f"{directory}/{PREPROCESSOR}: its normaliser names {file.name!r}, which is not there"
        )
    statistics: dict[str, dict[str, Tensor]] = {}
    for key, value in read_tensors(file).items():
        feature, name = key.rsplit(".", 1)
        statistics.setdefault(feature, {})[name] = value
    return statistics


def read_tokenizer_name(directory: Path) -> str:
    """Return the name of the tokenizer that the preprocessor uses."""
    step = _step(directory, "tokenizer_processor")
    settings = {} if step is None else without_nulls(step["config"])
    return settings.get("tokenizer_name", PALIGEMMA_TOKENIZER)


def split_embedded_statistics(
    tensors: Mapping[str, Deferred],
) -> tuple[Statistics, dict[str, Deferred]]:
    """Return the statistics that early lerobot releases kept among the weights, and the weights proper."""
    statistics: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Deferred] = {}
    for key, value in tensors.items():
        match = re.match(
            r"(normalize_inputs|normalize_targets|unnormalize_outputs)\.buffer_(.+)\.(\w+)$", key
        )
        if match is None:
            rest[key] = value
        elif match[1] != "unnormalize_outputs":
            feature = {"observation_state": STATE, "action": ACTION}.get(match[2], match[2])
            statistics.setdefault(feature, {})[match[3]] = value.read()
    return statistics, rest


def _step(directory: Path, name: str) -> dict[str, Any] | None:
    file = directory / PREPROCESSOR
    if not file.exists():
        return None
    steps = [step for step in read_json(file)["steps"] if step.get("registry_name") == name]
    return steps[0] if steps else None


def write(
    directory: Path, config: Pi0Config, features: FeatureConfig, statistics: Statistics, tokenizer: str
) -> None:
    """Write config.json, both processors and their statistics as lerobot does."""
    mapping = {
        "VISUAL": "IDENTITY",
        "STATE": features.state_normalization.upper(),
        "ACTION": features.action_normalization.upper(),
    }
    size = config.vision.image_size
    inputs = {key: {"type": "VISUAL", "shape": [3, size, size]} for key in features.image_keys}
    inputs[STATE] = {"type": "STATE", "shape": [features.state_dim]}
    outputs = {ACTION: {"type": "ACTION", "shape": [features.action_dim]}}
    relative, names = bool(features.relative_actions), _action_names(features)
    policy = {
        "type": "pi05" if config.pi05 else "pi0",
        "n_obs_steps": 1,
        "input_features": inputs,
        "output_features": outputs,
        # Sizes that are no variant are in our own file.
        "paligemma_variant": _variant(config.vlm) or "gemma_2b",
        "action_expert_variant": _variant(config.expert) or "gemma_300m",
        "dtype": config.dtype,
        "image_resolution": [size, size],
        "normalization_mapping": mapping,
        "use_relative_actions": relative,
        "relative_exclude_joints": ["absolute"],
        "action_feature_names": names,
        **{name: getattr(config, name) for name in _SHARED},
    }
    (directory / "config.json").write_text(json.dumps(policy, indent=4) + "\n")
    dims = {STATE: features.state_dim, ACTION: features.action_dim}  # openpi's statistics can be longer
    flat: dict[str, Tensor] = {}
    for feature, values in statistics.items():
        for name, value in values.items():
            vector = torch.atleast_1d(torch.as_tensor(value, dtype=torch.float32))
            flat[f"{feature}.{name}"] = vector[: dims.get(feature)].contiguous()
    normalize = {"eps": 1e-8, "features": {**inputs, **outputs}, "norm_map": mapping}
    relative_step = {"enabled": relative, "exclude_joints": ["absolute"], "action_names": names}
    before = _preprocessor_steps(config, normalize, relative_step, tokenizer)
    after = [
        ("unnormalizer_processor", {"eps": 1e-8, "features": outputs, "norm_map": mapping}),
        ("absolute_actions_processor", {"enabled": relative}),
        ("device_processor", {"device": "cpu", "float_dtype": None}),
    ]
    for file, steps in ((PREPROCESSOR, before), (POSTPROCESSOR, after)):
        _write_processor(directory, file, steps, flat)


def require_lerobot_sizes(config: Pi0Config) -> None:
    """Raise ValueError unless lerobot can build a policy of these sizes: it knows them by name."""
    if not (_variant(config.vlm) and _variant(config.expert)):
        known = sorted(name for name in VARIANTS if "lora" not in name)
        raise ValueError(
            f"format lerobot: lerobot builds its policy only in the sizes {', '.join(known)}, and this one "
            f"has others (widths {config.vlm.width} and {config.expert.width}); PI0Policy.from_pretrained "
            "loads it as it is, and format torch needs torch alone"
        )


def _variant(config: GemmaConfig) -> str | None:
    # Adapters are merged when a policy is written, so the name is the plain one.
    names = {value: name for name, value in VARIANTS.items()}
    return names.get(replace(config, lora_rank=0, lora_alpha=0.0))


def _preprocessor_steps(
    config: Pi0Config, normalize: dict[str, Any], relative: dict[str, Any], tokenizer: str
) -> list[tuple[str, dict[str, Any]]]:
    tokenize = {
        "max_length": config.tokenizer_max_length,
        "task_key": "task",
        "padding_side": "right",
        "padding": "max_length",
        "truncation": True,
        "tokenizer_name": tokenizer,
    }
    start = [("rename_observations_processor", {"rename_map": {}}), ("to_batch_processor", {})]
    if config.pi05:
        return [
            *start,
            ("relative_actions_processor", relative),
            ("normalizer_processor", normalize),
            ("pi05_prepare_state_tokenizer_processor_step", {}),
            ("tokenizer_processor", tokenize),
            ("device_processor", {"device": "cpu", "float_dtype": None}),
        ]
    return [
        *start,
        ("pi0_new_line_processor", {}),
        ("tokenizer_processor", tokenize),
        ("device_processor", {"device": "cpu", "float_dtype": None}),
        ("relative_actions_processor", relative),
        ("normalizer_processor", normalize),
    ]


def _write_processor(
    directory: Path, file: str, steps: list[tuple[str, dict[str, Any]]], statistics: dict[str, Tensor]
) -> None:
    name = file.removesuffix(".json")
    entries: list[dict[str, Any]] = []
    for i, (step, settings) in enumerate(steps):
        entry: dict[str, Any] = {"registry_name": step, "config": settings}
        if step.endswith("normalizer_processor"):
            entry["state_file"] = f"{name}_step_{i}_{step}.safetensors"
            save_file(statistics, directory / entry["state_file"])
        entries.append(entry)
    (directory / file).write_text(json.dumps({"name": name, "steps": entries}, indent=2) + "\n")


def _action_names(features: FeatureConfig) -> list[str]:
    """Return a name for each action dimension; lerobot tells the absolute ones by their name."""
    mask = features.relative_actions + (False,) * (features.action_dim - len(features.relative_actions))
    return [f"relative_{i}" if is_relative else f"absolute_{i}" for i, is_relative in enumerate(mask)]

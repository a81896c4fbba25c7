"""Reads what openpi's PyTorch-converted checkpoints say beside their weights.

`config.json` {action_dim, action_horizon, paligemma_variant, action_expert_variant, precision} and
`assets/{asset_id}/norm_stats.json`.
"""

from pathlib import Path
from typing import Any

from pi0.config import VARIANTS, Pi0Config
from pi0.features import ACTION, STATE, FeatureConfig
from pi0.normalize import Statistics
from pi0.tensor_files import CheckpointError, read_json, stored_weights

CAMERAS = tuple(
    f"observation.images.{name}" for name in ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
)
LIBERO_STATE_DIM, LIBERO_ACTION_DIM = 8, 7


def read_config(values: dict[str, Any], directory: Path) -> Pi0Config:
    """Return the sizes; pi05 is told by its weights, because the file does not say it."""
    pi05 = not any("state_proj" in key for key in stored_weights(directory))
    try:
        vlm, expert = VARIANTS[values["paligemma_variant"]], VARIANTS[values["action_expert_variant"]]
        horizon, width = int(values["action_horizon"]), int(values["action_dim"])
    except KeyError as error:
        raise CheckpointError(
            f"{directory}/config.json: {error} is missing or not one of the variants {sorted(VARIANTS)}"
        ) from error
    return Pi0Config(
        vlm=vlm,
        expert=expert,
        pi05=pi05,
        chunk_size=horizon,
        n_action_steps=horizon,
        max_state_dim=width,
        max_action_dim=width,
        tokenizer_max_length=200 if pi05 else 48,
        dtype="bfloat16" if values.get("precision") == "bfloat16" else "float32",
    )


def find_asset(directory: Path) -> Path:
    """Return the only norm_stats.json under assets/; none or several are an error."""
    files = sorted(directory.glob("assets/**/norm_stats.json"))
    if len(files) != 1:
        names = [str(file.relative_to(directory)) for file in files]
        raise CheckpointError(
            f"{directory}: expected one assets/<asset_id>/norm_stats.json, found {names or 'none'}. Pass "
            "statistics and features, or keep only the asset of your robot (openpi computes it with "
            "compute_norm_stats.py)."
        )
    return files[0]


def read_statistics(asset: Path) -> Statistics:
    """Return the statistics under lerobot's feature names; absent quantiles are left out."""
    values = read_json(asset).get("norm_stats", {})
    if not {"state", "actions"} <= set(values):
        raise CheckpointError(f"{asset}: expected norm_stats of state and actions, found {sorted(values)}")
    names = {STATE: "state", ACTION: "actions"}
    return {
        feature: {k: v for k, v in values[name].items() if v is not None} for feature, name in names.items()
    }


def read_features(
    directory: Path, asset: Path | None, config: Pi0Config, extra_delta_transform: bool | None
) -> FeatureConfig:
    """Return openpi's conventions.

    Widths are LIBERO's for its assets, else the model's; pass features for another robot. pi0_libero was
    trained on actions relative to the state in the first six dimensions (extra_delta_transform=True),
    pi05_libero was not, and no file tells, so for LIBERO assets the caller must.
    """
    is_libero = asset is not None and "libero" in str(asset.relative_to(directory)).lower()
    if is_libero and extra_delta_transform is None:
        raise CheckpointError(
            f"{directory}: openpi's LIBERO checkpoints do not say whether they were trained with "
            "extra_delta_transform, and a wrong value ruins the actions silently: pass "
            "extra_delta_transform=True for pi0_libero, False for pi05_libero (of pi0-eval: "
            "--extra-delta-transform, --no-extra-delta-transform)"
        )
    normalization = "quantiles" if config.pi05 else "mean_std"
    return FeatureConfig(
        image_keys=CAMERAS,
        absent_cameras=CAMERAS[2:] if is_libero else (),
        state_dim=LIBERO_STATE_DIM if is_libero else config.max_state_dim,
        action_dim=LIBERO_ACTION_DIM if is_libero else config.max_action_dim,
        state_normalization=normalization,
        action_normalization=normalization,
        epsilon="openpi",
        relative_actions=(True,) * 6 + (False,) if extra_delta_transform else (),
        prompt="openpi",
        state_in_prompt=not is_libero,  # openpi's pi05_libero: discrete_state_input=False
        resize="antialias",
        loss_dims="all",
    )

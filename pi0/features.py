"""What goes in and out of a policy: cameras, widths, normalisation, prompt, and where the upstreams differ.

The defaults are lerobot's; a loaded checkpoint brings its own.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pi0.errors import UnusableError
from pi0.plain import from_plain

NormalizationMode = Literal["mean_std", "quantiles", "min_max", "identity"]
STATE = "observation.state"
ACTION = "action"


@dataclass(frozen=True)
class FeatureConfig:
    """Names and conventions of the raw data that a policy takes and returns."""

    image_keys: tuple[str, ...]  # batch keys of the cameras, in the order that the model was trained with
    state_dim: int
    action_dim: int
    absent_cameras: tuple[str, ...] = ()  # of image_keys, those that this robot does not have
    state_normalization: NormalizationMode = "mean_std"
    action_normalization: NormalizationMode = "mean_std"
    # lerobot: (x - m) / (s + 1e-8), back with s. openpi: 1e-6, back with s + 1e-6.
    epsilon: Literal["lerobot", "openpi"] = "lerobot"
    # Per action dimension: is the model's action relative to the state at the start of the chunk? () = none.
    # (openpi: DeltaActions, extra_delta_transform; lerobot: use_relative_actions)
    relative_actions: tuple[bool, ...] = ()
    # lerobot appends a newline to the task; openpi also strips it and turns underscores and newlines to
    # spaces.
    prompt: Literal["lerobot", "openpi"] = "lerobot"
    # pi05 only: is the discretised state part of the prompt? (openpi: discrete_state_input)
    state_in_prompt: bool = True
    # lerobot resizes float images without antialiasing; openpi resizes uint8 images with it (PIL).
    resize: Literal["bilinear", "antialias"] = "bilinear"
    # lerobot averages the loss over the robot's dimensions, openpi over all padded ones.
    loss_dims: Literal["real", "all"] = "real"

    def __post_init__(self) -> None:
        for name, dim in {"state_dim": self.state_dim, "action_dim": self.action_dim}.items():
            if dim < 1:
                raise UnusableError(f"{name}: expected at least 1, found {dim}")
        if not self.present_cameras:
            raise UnusableError(
                "image_keys: expected at least one camera that is not in absent_cameras, found "
                f"{self.image_keys} without {self.absent_cameras}"
            )
        unknown = set(self.absent_cameras) - set(self.image_keys)
        if unknown:
            raise UnusableError(
                f"absent_cameras: expected names from {list(self.image_keys)}, found {sorted(unknown)}"
            )
        if len(self.relative_actions) > min(self.action_dim, self.state_dim):
            raise UnusableError(
                f"relative_actions: expected at most {min(self.action_dim, self.state_dim)} entries (a "
                f"relative action needs a state dimension), found {len(self.relative_actions)}"
            )

    @property
    def present_cameras(self) -> tuple[str, ...]:
        """Batch keys of the cameras that every observation must bring."""
        return tuple(key for key in self.image_keys if key not in self.absent_cameras)

    def inputs_spec(self) -> dict[str, tuple[tuple[int | None, ...], str]]:
        """Return name -> (shape, dtype) of what every raw sample must have; None is any size.

        A training sample has a chunk of such actions. What the model sees: `Pi0Config.inputs_spec`.
        """
        cameras = dict.fromkeys(self.present_cameras, ((None, None, 3), "uint8"))
        return {**cameras, STATE: ((self.state_dim,), "float32"), ACTION: ((self.action_dim,), "float32")}

    def require_inputs(self, offered: Mapping[str, Mapping[str, Any]], source: str) -> None:
        """Raise one ValueError that tells all that a data set or environment does not offer as needed.

        `offered` is name -> {"shape", "dtype"}, such as `LeRobotDataset.meta.features`; `source` names it.
        """
        problems = []
        for name, (shape, dtype) in self.inputs_spec().items():
            offer = offered.get(name)
            if offer is None:
                problems.append(f"{name}: missing; there are {', '.join(sorted(offered))}")
            elif not _fits(tuple(offer["shape"]), str(offer["dtype"]), shape, dtype):
                size = "(height, width, 3)" if dtype == "uint8" else shape
                problems.append(
                    f"{name}: expected {dtype} {size}, found {offer['dtype']} {tuple(offer['shape'])}"
                )
        if problems:
            raise UnusableError(f"{source} does not offer what the policy takes: " + "; ".join(problems))

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "FeatureConfig":
        """Return the configuration that `to_dict` described; what does not fit is an UnusableError."""
        return from_plain(cls, values)


def _fits(offered: tuple[int, ...], offered_dtype: str, shape: tuple[int | None, ...], dtype: str) -> bool:
    if dtype == "uint8":  # a camera, channels first or last; lerobot calls its dtype by how it is stored
        is_image = offered_dtype in ("uint8", "image", "video") and len(offered) == 3
        return is_image and 3 in (offered[0], offered[-1])
    return offered == shape and offered_dtype in ("float32", "float64")

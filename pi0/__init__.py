"""Our own pi0 policy: model, weights, preprocessing. Knows nothing of reinforcement learning.

Names are imported when they are first used, so that simulation workers, which need none of them, stay
without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pi0.config import GemmaConfig, Pi0Config, SiglipConfig, pi05_config, toy_config
    from pi0.features import FeatureConfig
    from pi0.model import Pi0Model
    from pi0.normalize import compute_statistics
    from pi0.observation import Indicator, Observation
    from pi0.policy import PI0Policy
    from pi0.prompts import PromptTokenizer
    from pi0.tensor_files import CheckpointError
    from pi0.weights import WeightLoader

__all__ = [
    "CheckpointError",
    "FeatureConfig",
    "GemmaConfig",
    "Indicator",
    "Observation",
    "PI0Policy",
    "Pi0Config",
    "Pi0Model",
    "PromptTokenizer",
    "SiglipConfig",
    "WeightLoader",
    "compute_statistics",
    "pi05_config",
    "toy_config",
]

_MODULES = {
    "config": ("GemmaConfig", "Pi0Config", "SiglipConfig", "pi05_config", "toy_config"),
    "features": ("FeatureConfig",),
    "model": ("Pi0Model",),
    "normalize": ("compute_statistics",),
    "observation": ("Indicator", "Observation"),
    "policy": ("PI0Policy",),
    "prompts": ("PromptTokenizer",),
    "tensor_files": ("CheckpointError",),
    "weights": ("WeightLoader",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pi0' has no attribute {name!r}")
    return getattr(import_module(f"pi0.{_HOME[name]}"), name)

"""Our own pi0 policy: model, weights, preprocessing. Knows nothing of reinforcement learning."""

from pi0.config import GemmaConfig, Pi0Config, SiglipConfig, pi05_config, toy_config
from pi0.features import FeatureConfig
from pi0.model import Pi0Model
from pi0.normalize import compute_statistics
from pi0.observation import Indicator, Observation
from pi0.policy import PI0Policy
from pi0.prompts import PromptTokenizer
from pi0.weights import CheckpointError, WeightLoader

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

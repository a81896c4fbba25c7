"""A value function: a distribution over bins of a scalar in [-1, 0], read out at a learned token.

Two forms through one class. "expert": a small Gemma whose tokens read a policy's keys and values of images
and prompt; the policy is not trained by it. "separate": the same behind a vision tower and language model of
its own.

Axis legend: b batch, n bins, s state dim, d width.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor, nn

from pi0.checkpoint_names import INDEX, WEIGHTS
from pi0.embodiment import plain_statistics, require_chosen
from pi0.features import STATE, FeatureConfig
from pi0.gemma import ActionExpert, LanguageModel
from pi0.layers import Linear
from pi0.normalize import Normalizer, Statistics
from pi0.observation import Indicator, Observation
from pi0.policy import Batch, PI0Policy
from pi0.prefix import Prefix, PrefixModel
from pi0.preprocess import checked_vector, model_images, padded, tasks
from pi0.prompts import PromptTokenizer, build_prompts
from pi0.tensor_files import (
    CheckpointError,
    Deferred,
    read_json,
    stored_weights,
    write_weights,
)
from pi0.trainable import initialize
from pi0.value_config import ValueConfig, require_readable
from pi0.vision import VisionTower
from pi0.weights import whole_parameters

CONFIG = "value_config.json"
TOKENIZER = "tokenizer"


def bin_centers(num_bins: int, device: torch.device | str = "cpu") -> Float[Tensor, " {num_bins}"]:
    """Return the middles of equal bins of [-1, 0]."""
    return (torch.arange(num_bins, device=device, dtype=torch.float32) + 0.5 - num_bins) / num_bins


def bin_of(returns: Float[Tensor, " b"], num_bins: int) -> Int[Tensor, " b"]:
    """Return the bin of each return: `int((r + 1) * (num_bins - 1))`, clamped to the bins there are.

    In float64, as in OpenTau's reward.py: calculate_return_bins_with_equal_width, which does not clamp.
    """
    return ((returns.double() + 1.0) * (num_bins - 1)).long().clamp(0, num_bins - 1)


class ValueLoss(NamedTuple):
    """What training a value function minimises, and how well it does; means over the batch."""

    cross_entropy: Float[Tensor, ""]
    accuracy: Float[Tensor, ""]
    """Share of samples whose most likely bin is that of the return."""
    error: Float[Tensor, ""]
    """Mean absolute difference of value and return."""


class Inputs(NamedTuple):
    """Conventions of raw data, needed where there is no policy to lend its own."""

    features: FeatureConfig
    tokenizer: PromptTokenizer
    statistics: Statistics


class ValueFunction(PrefixModel[ValueConfig]):
    """Values of raw observations: batches with the keys of `PI0Policy`, without actions."""

    def __init__(self, config: ValueConfig, source: PI0Policy | Inputs, *, seed: int | None = 0) -> None:
        """Build it; with seed None the parameters are undefined until weights are loaded.

        `source` is, in the expert form, the policy whose prefix is read: it is kept as it is, belongs to the
        caller and must not change afterwards. In the separate form it only says what raw data mean.
        """
        super().__init__()
        self.config = config
        # In a tuple, because the policy's parameters are not this module's.
        self._policy = (source,) if config.form == "expert" and isinstance(source, PI0Policy) else ()
        if config.form == "expert" and not self._policy:
            raise ValueError("source: the expert form reads a policy's prefix; expected that PI0Policy")
        if self._policy:
            require_readable(config.expert, self._policy[0].config.vlm)
            if config.max_state_dim != self._policy[0].config.max_state_dim:
                raise ValueError(
                    f"max_state_dim: expected the policy's {self._policy[0].config.max_state_dim}, found "
                    f"{config.max_state_dim}"
                )
        if isinstance(source, PI0Policy):
            require_chosen(source.embodiments.tags, source.embodiments.chosen)
        self.features, self.tokenizer = source.features, source.tokenizer
        self.statistics = {STATE: dict(source.statistics[STATE])} if STATE in source.statistics else {}
        with torch.device("meta"):
            self._build()
        self.to_empty(device=source.device if isinstance(source, PI0Policy) else "cpu")
        self.normalizer = Normalizer(
            STATE,
            self.features.state_dim,
            self.features.state_normalization,
            self.statistics,
            self.features.epsilon,
        ).to(self.device)
        if seed is not None:
            initialize(self, seed)

    def _build(self) -> None:
        config, width = self.config, self.config.expert.width
        if config.vlm is not None:
            self.vision = VisionTower(config.vision, config.vlm.width)
            self.vlm = LanguageModel(config.vlm, config.vocab_size)
        self.expert = ActionExpert(config.expert, adaptive=False)
        self.state_proj = Linear(config.max_state_dim, width)
        self.readout = nn.Parameter(torch.empty(width))
        self.head = Linear(width, config.num_bins)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.readout.device

    @property
    def reads(self) -> PI0Policy | None:
        """The policy whose prefix is read; None in the separate form."""
        return self._policy[0] if self._policy else None

    def forward(self, batch: Batch) -> Float[Tensor, "b n"]:
        """Return the logits of the bins."""
        observation, prefix = self._observe(batch)
        state = self.state_proj(observation.state.float())
        tokens = torch.stack([state, self.readout.float().expand_as(state)], dim=1)
        positions = prefix.num_valid[:, None] + torch.arange(2, device=self.device)
        dtype = getattr(torch, self.config.dtype)
        return self.head(self.expert(tokens, positions, prefix.kv, None, dtype)[:, 1])

    @property
    def frames_at_once(self) -> int:
        """How many observations one pass of `values` can take in about a GiB, at most 256.

        Most of it is the language model's gate, its other half and their product, of every token.
        """
        config = self._policy[0].config if self._policy else self.config
        if config.vlm is None:
            raise ValueError("vlm: expected a language model")
        tokens = len(self.features.present_cameras) * config.vision.num_patches + config.tokenizer_max_length
        a_frame = 3 * tokens * config.vlm.mlp_dim * getattr(torch, config.dtype).itemsize
        return min(256, max(1, 2**30 // a_frame))

    @torch.no_grad()
    def values(self, batch: Batch) -> Float[Tensor, " b"]:
        """Return the expected return of each observation, in [-1, 0]."""
        return self.expectation(self(batch))

    def expectation(self, logits: Float[Tensor, "b n"]) -> Float[Tensor, " b"]:
        """Return the mean of the distributions."""
        return logits.float().softmax(-1) @ bin_centers(self.config.num_bins, logits.device)

    def loss(self, batch: Batch, returns: Float[Tensor, " b"]) -> ValueLoss:
        """Return the cross entropy of the returns' bins, with accuracy and error for the log."""
        logits = self(batch)
        returns = returns.to(self.device)
        target = bin_of(returns, self.config.num_bins)
        return ValueLoss(
            F.cross_entropy(logits.float(), target),
            (logits.argmax(-1) == target).float().mean().detach(),
            (self.expectation(logits) - returns).abs().mean().float().detach(),
        )

    def _observe(self, batch: Batch) -> tuple[Observation, Prefix]:
        if self._policy:
            policy, prefix = self._policy[0], None
            with torch.no_grad():
                if policy.prefixes is not None:
                    prefix = policy.prefixes.of(policy, batch)
                observation = policy.preprocess(batch, state_only=prefix is not None)
                return observation, prefix or policy.model.prefix(observation)
        observation = self._preprocess(batch)
        return observation, self.prefix(observation)

    def _preprocess(self, batch: Batch) -> Observation:
        """Return the model's input, as `PI0Policy.preprocess` does for a policy without indicator."""
        raw = checked_vector(batch, STATE, self.features.state_dim, self.device)
        images, image_mask = model_images(batch, self.features, self.config.vision.image_size, self.device)
        prompts = build_prompts(
            tasks(batch, len(raw)), [Indicator.NONE] * len(raw), [None] * len(raw), self.features.prompt
        )
        tokens, token_mask = self.tokenizer.encode(
            prompts, self.config.tokenizer_max_length, self.config.vocab_size
        )
        state = padded(self.normalizer.encode(raw), self.config.max_state_dim)
        return Observation(images, image_mask, tokens, token_mask, state).compact().to(self.device)

    # Files --------------------------------------------------------------------------------------------------

    def save_pretrained(
        self,
        directory: str | Path,
        *,
        untrained: Path | None = None,
        weights: Mapping[str, Deferred] | None = None,
    ) -> None:
        """Write weights, sizes and conventions; in the expert form also a hash of the prefix it reads.

        `untrained` and `weights` as in `pi0.saving.save`.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        frozen = [name for name, p in self.named_parameters() if not p.requires_grad]
        write_weights(directory, whole_parameters(self, weights), untrained=frozen, store=untrained)
        described = {
            "config": asdict(self.config),
            "features": self.features.to_dict(),
            "statistics": plain_statistics({STATE: self.statistics.get(STATE, {})}),
            "prefix_hash": prefix_hash(self._policy[0]) if self._policy else None,
        }
        if self._policy and (robot := self._policy[0].embodiments.chosen) is not None:
            described["embodiment"] = robot
        self.tokenizer.save(directory / TOKENIZER)
        (directory / CONFIG).write_text(json.dumps(described, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, directory: str | Path, policy: PI0Policy | None = None) -> "ValueFunction":
        """Return what `save_pretrained` wrote, in evaluation mode.

        The expert form needs the policy that it was trained on; another one is a CheckpointError, as are
        missing, unexpected and mis-shaped tensors.
        """
        directory = Path(directory)
        for name in (WEIGHTS, CONFIG):
            names = (WEIGHTS, INDEX) if name == WEIGHTS else (name,)
            if not any((directory / name).exists() for name in names):
                raise CheckpointError(f"{directory}: expected {name} of a value function; it is not there")
        described = read_json(directory / CONFIG)
        config = ValueConfig.from_dict(described["config"])
        source: PI0Policy | Inputs
        if config.form == "expert":
            source = _require_policy(directory, policy, described["prefix_hash"], described.get("embodiment"))
        else:
            tokenizer = PromptTokenizer.from_pretrained(directory / TOKENIZER)
            source = Inputs(
                FeatureConfig.from_dict(described["features"]), tokenizer, described["statistics"]
            )
        value = cls(config, source, seed=None)
        _load(value, stored_weights(directory), directory / WEIGHTS)
        return value.eval()


def prefix_hash(policy: PI0Policy) -> str:
    """Return the SHA-256 of the weights that a prefix is made with."""
    digest = hashlib.sha256()
    for name, parameter in policy.model.named_parameters():
        if name.startswith(("vision.", "vlm.")):
            # The values count, not the dtype that they happen to be held in.
            digest.update(f"{name} {torch.float32} {tuple(parameter.shape)}".encode())
            for part in parameter.detach().reshape(-1).split(2**24):
                digest.update(part.float().cpu().numpy().data)
    return digest.hexdigest()


def _require_policy(
    directory: Path, policy: PI0Policy | None, expected: str, embodiment: str | None
) -> PI0Policy:
    if policy is None:
        raise CheckpointError(
            f"{directory}: this value function reads a policy's prefix; pass the policy it was trained on"
        )
    present = prefix_hash(policy)
    if present != expected:
        raise CheckpointError(
            f"{directory}: trained on a policy whose prefix weights have the hash {expected[:16]}, found "
            f"{present[:16]}; pass that policy, or train the value function again on this one"
        )
    if policy.embodiments.chosen != embodiment:
        raise CheckpointError(
            f"{directory}: expected the robot that it was trained for ({embodiment or 'no tag'}), found "
            f"a policy that acts as {policy.embodiments.chosen or 'no robot with a tag'}; pass --embodiment "
            f"{embodiment}, or the policy it was trained on"
        )
    return policy


def _load(value: ValueFunction, tensors: Mapping[str, Deferred], file: Path) -> None:
    parameters = dict(value.named_parameters())
    problems = [f"  missing    {name}" for name in parameters if name not in tensors]
    problems += [f"  unexpected {name}" for name in tensors if name not in parameters]
    problems += [
        f"  mis-shaped {name}: expected {list(parameters[name].shape)}, found {list(tensor.shape)}"
        for name, tensor in tensors.items()
        if name in parameters and parameters[name].shape != tensor.shape
    ]
    if problems:
        raise CheckpointError(f"{file} does not fit its {CONFIG}:\n" + "\n".join(problems))
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor.read())

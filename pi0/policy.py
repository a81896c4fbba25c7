"""PI0Policy: raw observations and actions in and out of a pi0 model.

A batch is a mapping with lerobot's keys: `observation.images.*` (uint8 or [0, 1]), `observation.state`,
`task`, and for training `action` (b, h, action_dim) and optionally `action_is_pad` (b, h), all in raw
units; in a batch of several robots `embodiment_id` (b,), see `pi0.embodiment.Embodiments`.

Axis legend: k noise draws, b batch, h action horizon, a action dim, s state dim.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pi0.asker import Asker
from pi0.config import Pi0Config
from pi0.embodiment import EMBODIMENT, Embodiment, Embodiments
from pi0.features import ACTION, STATE, FeatureConfig
from pi0.graphs import GraphedSampler
from pi0.model import Pi0Model
from pi0.normalize import Statistics
from pi0.observation import Indicator, Indicators, Observation, each_indicator, withhold
from pi0.prefix import Prefix
from pi0.prefix_cache import PrefixCache
from pi0.preprocess import model_images, padded, tasks, valid_steps
from pi0.prompts import PromptTokenizer, build_prompts

Batch = Mapping[str, Any]


class PI0Policy(nn.Module):
    """A pi0 model with its tokenizer, normalisation and conventions.

    `loss` is what training minimises, `sample_actions` returns chunks of actions, `select_action` one
    action at a time. Sampling noise comes from `generator` arguments or torch's global generator.
    """

    def __init__(
        self,
        config: Pi0Config,
        features: FeatureConfig,
        tokenizer: PromptTokenizer,
        statistics: Statistics | None,
        *,
        model: Pi0Model | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self.use_embodiments({None: Embodiment(features, statistics or {})})
        self.model = model if model is not None else config.create(seed)
        self.source: Path | None = None  # directory it came from; see saving.save
        self.prefixes: PrefixCache | None = None  # of a model whose vision and language stay as they are
        self._graphed: GraphedSampler | None = None
        self.reset()

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> "PI0Policy":
        """Return the policy of a checkpoint directory or hub repository; see `pi0.pretrained.load`."""
        from pi0.pretrained import load  # it builds policies, so it imports this module

        return load(path, **options)

    def save_pretrained(self, directory: str | Path, **options: Any) -> None:
        """Write a directory that both this class and lerobot's policy load; see `pi0.saving.save`."""
        from pi0.saving import save  # it saves policies, so it imports this module

        save(self, Path(directory), **options)

    def use_embodiments(self, known: Mapping[Any, Embodiment], chosen: str | None = None) -> None:
        """Know these robots and act as the chosen one (see `Embodiments`); move it to its device again."""
        self.embodiments = Embodiments(known, chosen, self.config)

    @property
    def features(self) -> FeatureConfig:
        """Conventions of the robot that the policy acts as; of the first one while none is chosen."""
        return self.embodiments.default.features

    @property
    def statistics(self) -> Statistics:
        """Statistics of the robot that the policy acts as; of the first one while none is chosen."""
        return self.embodiments.default.statistics

    def use_graphs(self) -> "PI0Policy":
        """Sample by CUDA graphs if the policy is on a GPU, and return it; see `GraphedSampler`."""
        if self.device.type == "cuda" and self._graphed is None:
            self._graphed = GraphedSampler(self.model)
        return self

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.action_in_proj.weight.device

    # Raw units <-> model units ------------------------------------------------------------------------------

    def preprocess(
        self,
        batch: Batch,
        indicator: Indicators = None,
        *,
        pad_prompts: bool = False,
        state_only: bool = False,
    ) -> Observation:
        """Return the model's input for a raw batch; fields that do not fit are ValueErrors.

        `indicator` (values of `Indicator`) enters as the configuration says; default: none is given. With
        `pad_prompts` the rounding of a sample does not depend on how long the others' prompts are. With
        `state_only` images and prompts are left out, because a prefix that holds them is at hand.
        """
        raw = self.embodiments.vector(batch, STATE, self.device)
        size = self.config.vision.image_size
        images, image_mask = torch.empty(len(raw), 0, 3, size, size), torch.ones(len(raw), 0).bool()
        if not state_only:
            says = self.embodiments.features_of(batch)
            images, image_mask = model_images(batch, says, size, self.device)
            if len(images) != len(raw):
                raise ValueError(f"{STATE}: expected the cameras' batch size {len(images)}, found {len(raw)}")
        indicators = each_indicator(indicator, len(raw), self.config.indicator)
        observation = Observation(
            images=images,
            image_mask=image_mask,  # the masks stay on the host until they are compacted
            tokens=torch.empty(len(raw), 0, dtype=torch.long),
            token_mask=torch.empty(len(raw), 0, dtype=torch.bool),
            state=self.embodiments.encode_state(batch, raw, self.config.max_state_dim),
            indicator=indicators if self.config.indicator == "embedding" else None,
        )
        if state_only:
            return observation.to(self.device)
        return self._with_prompt(observation, batch, indicators, pad_prompts)

    def prompts(
        self, batch: Batch, indicators: Int[Tensor, " b"] | None, state: Float[Tensor, "b padded_s"]
    ) -> list[str]:
        """Return the prompt of each sample; `state` in model units."""
        values = [Indicator.NONE] * len(state)
        if indicators is not None and self.config.indicator == "text":
            values = [Indicator(v) for v in indicators.tolist()]
        states: Any = [None] * len(state)
        if self.config.pi05 and self.features.state_in_prompt:
            dims = self.embodiments.dims(batch, STATE, len(state)).tolist()
            states = [row[:dim] for row, dim in zip(state.cpu().numpy(), dims, strict=True)]
        return build_prompts(tasks(batch, len(state)), values, states, self.features.prompt)

    def _with_prompt(
        self,
        observation: Observation,
        batch: Batch,
        indicators: Int[Tensor, " b"] | None,
        pad_prompts: bool,
    ) -> Observation:
        length, prompts = self.config.tokenizer_max_length, self.prompts(batch, indicators, observation.state)
        tokens, token_mask = self.tokenizer.encode(prompts, length, self.config.vocab_size)
        image_mask = observation.image_mask.cpu()
        observation = replace(
            observation, image_mask=image_mask, tokens=tokens, token_mask=token_mask
        ).compact()
        return (observation.pad_prompt(length) if pad_prompts else observation).to(self.device)

    def encode_actions(
        self, actions: Float[Tensor, "b h a"], state: Float[Tensor, "b s"]
    ) -> Float[Tensor, "b h padded_a"]:
        """Return the model's targets: relative to the state at the chunk's start, normalised, zero-padded."""
        return padded(self.embodiments.acting.encode_actions(actions, state), self.config.max_action_dim)

    def decode_actions(
        self, chunk: Float[Tensor, "b h padded_a"], state: Float[Tensor, "b s"]
    ) -> Float[Tensor, "b h a"]:
        """Return raw actions; the inverse of `encode_actions` at the same raw state."""
        return self.embodiments.acting.decode_actions(chunk, state)

    # Training -----------------------------------------------------------------------------------------------

    def loss(
        self,
        batch: Batch,
        *,
        reduction: Literal["mean", "sample", "element"] = "mean",
        indicator: Indicators = None,
        num_draws: int = 1,
        noise: Float[Tensor, "k b h padded_a"] | None = None,
        time: Float[Tensor, "k b"] | None = None,
        prefix: Prefix | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "..."]:
        """Return the flow-matching loss.

        `element`: (b, h, dims), zero where `action_is_pad`; dims as `FeatureConfig.loss_dims` says, and in a
        batch of several robots the widest one's, zero behind each sample's own. `sample`: (b,), the mean over
        a sample's valid elements. `mean`: the mean over samples. In training mode a share `indicator_dropout`
        of the indicators is withheld. `generator` must be on the policy's device.
        """
        if prefix is not None and self.config.indicator == "text":
            raise ValueError(
                "prefix: a prompt with an indicator is part of it, so this loss must encode its own"
            )
        if self.training and self.config.indicator_dropout > 0.0 and indicator is not None:
            size = len(self.embodiments.vector(batch, STATE, self.device))
            given = torch.as_tensor(indicator).expand(size).cpu()
            indicator = withhold(given, self.config.indicator_dropout, self.device, generator)
        if prefix is None and self.prefixes is not None:
            prefix = self.prefixes.of(self, batch, indicator)
        observation = self.preprocess(batch, indicator, state_only=prefix is not None)
        state = self.embodiments.vector(batch, STATE, self.device)
        raw = self.embodiments.vector(batch, ACTION, self.device, ndim=3)
        if raw.shape[:2] != (len(state), self.config.chunk_size):
            raise ValueError(
                f"{ACTION}: expected (batch {len(state)}, chunk_size {self.config.chunk_size}, ...), "
                f"found {tuple(raw.shape)}"
            )
        losses = self.model.loss(
            observation,
            self.embodiments.encode_actions(batch, raw, state, self.config.max_action_dim),
            noise=noise,
            time=time,
            num_draws=num_draws,
            prefix=prefix,
            generator=generator,
        )
        losses = self.embodiments.counted(batch, losses)
        valid = valid_steps(batch, raw.shape[:2], self.device)
        losses = losses * valid[..., None]
        if reduction == "element":
            return losses
        per_sample = self.embodiments.mean(batch, losses).sum(1) / valid.sum(1).clamp(min=1.0)
        return per_sample if reduction == "sample" else per_sample.mean()

    # Acting -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def prefix(self, batch: Batch, indicator: Indicator | None = None) -> Prefix:
        """Return the keys and values of images and prompt, to be handed to `sample_actions` or `loss` again.

        Under `torch.no_grad`; for a prefix with gradients call `model.prefix(preprocess(batch))`.
        """
        return self.model.prefix(self.preprocess(batch, self._default(indicator)))

    @torch.no_grad()
    def sample_actions(
        self,
        batch: Batch,
        *,
        num_steps: int | None = None,
        noise: Float[Tensor, "b h padded_a"] | None = None,
        guidance: float = 1.0,
        indicator: Indicator | None = None,
        prefix: Prefix | None = None,
        pad_prompts: bool = False,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b h a"]:
        """Return a chunk of raw actions for each sample; `noise` is not changed.

        `guidance` s samples from `v_u + s (v_c - v_u)`: s = 1 only conditional, s = 0 only unconditional
        (indicator withheld). `indicator` defaults to POSITIVE for policies that take one. A `prefix` is
        that of the conditional observation. `pad_prompts` as in `preprocess`.
        """
        if guidance != 1.0 and self.config.indicator == "none":
            raise ValueError(
                f"guidance: expected 1 for a policy without indicator, found {guidance}; there is nothing "
                f"to guide by"
            )
        robot, indicator = self.embodiments.acting, self._default(indicator)
        if EMBODIMENT in batch:
            raise ValueError(f"{EMBODIMENT}: a policy acts as one robot at a time, see `use_embodiments`")
        if guidance == 0.0:  # unconditional only: one pass
            indicator, guidance, prefix = Indicator.NONE, 1.0, None
        has_two_prompts = guidance != 1.0 and self.config.indicator == "text"
        state_only = prefix is not None and not has_two_prompts
        observation = self.preprocess(batch, indicator, pad_prompts=pad_prompts, state_only=state_only)
        unconditional = None
        if has_two_prompts:
            unconditional = self._with_prompt(observation, batch, None, pad_prompts)
        chunk = (self._graphed or self.model.sample)(
            observation,
            num_steps=num_steps,
            noise=noise,
            guidance=guidance,
            generator=generator,
            prefix=prefix,
            unconditional=unconditional,
        )
        state = self.embodiments.vector(batch, STATE, self.device)
        robot.state_normalizer.tell_far_outside(state)  # after the sampling: on a GPU it waits for that
        return robot.decode_actions(chunk, state)

    def _default(self, indicator: Indicator | None) -> Indicator | None:
        if indicator is None and self.config.indicator != "none":
            return Indicator.POSITIVE
        return indicator

    def reset(self) -> None:
        """Forget the queued actions; call it at the start of an episode."""
        self._queue: deque[Tensor] = deque()
        self._queued_for: Asker | None = None

    @torch.no_grad()
    def select_action(self, batch: Batch, **options: Any) -> Float[Tensor, "b a"]:
        """Return the next action: `n_action_steps` of each sampled chunk are executed before a new one.

        Options are those of `sample_actions`; they matter when a new chunk is sampled.

        Raises:
            ValueError: The actions that are queued are for a batch of another size, task or `episode_index`.
        """
        asker = Asker.of(batch, self.embodiments.acting.features, self.device)
        if not self._queue:
            chunk = self.sample_actions(batch, **options)[:, : self.config.n_action_steps]
            self._queue.extend(chunk.unbind(1))
            self._queued_for = asker
        asker.require_same(self._queued_for, len(self._queue))
        return self._queue.popleft()

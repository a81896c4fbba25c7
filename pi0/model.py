"""The pi0 model: prefix (images, prompt) -> context (plus state) -> velocity -> loss or sample.

Both training and sampling run in two passes: the prefix is encoded once into keys and values, then the action
expert attends to them. This equals the joint pass of openpi and lerobot, because in their attention mask the
prefix never sees the suffix, and the state token never sees the actions.

Axis legend: k noise draws, b batch, c cameras, p prefix tokens, s state dim, h horizon, a action, d width.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from torch import Tensor, nn

from pi0.config import Pi0Config
from pi0.flow import (
    FlowNoise,
    FlowPath,
    euler,
    interpolate,
    sample_time,
    step_time,
    stochastic_euler,
    time_embedding,
)
from pi0.gemma import ActionExpert, LanguageModel
from pi0.layers import Linear, kept_scales, rope_tables
from pi0.observation import Indicator, Observation
from pi0.prefix import Prefix, PrefixModel, concatenate_prefixes
from pi0.trainable import frozen_names, hold, inference_dtypes, initialize, training_dtypes
from pi0.vision import VisionTower


class Pi0Model(PrefixModel[Pi0Config]):
    """pi0 and pi05 at any size; tensors in, tensors out (see `PI0Policy` for raw data)."""

    def __init__(
        self, config: Pi0Config, *, seed: int | None = 0, device: torch.device | str = "cpu"
    ) -> None:
        """Build the model; with seed None its values are undefined until weights are loaded."""
        super().__init__()
        self.config = config
        with torch.device("meta"):  # allocates nothing and draws no random numbers
            self._build(config)
        self.to_empty(device=device)
        if seed is not None:
            initialize(self, seed)

    def _build(self, config: Pi0Config) -> None:
        """Make the parameters; a subclass with more of them adds them here."""
        d = config.expert.width
        checkpointing = {"gradient_checkpointing": config.gradient_checkpointing}
        self.vision = VisionTower(config.vision, config.vlm.width, **checkpointing)
        self.vlm = LanguageModel(config.vlm, config.vocab_size, **checkpointing)
        self.expert = ActionExpert(config.expert, adaptive=config.pi05, **checkpointing)
        self.action_in_proj = Linear(config.max_action_dim, d)
        self.action_out_proj = Linear(d, config.max_action_dim)
        # pi0 mixes time into the action tokens; pi05 feeds it to the adaptive norms.
        self.time_mlp_in = Linear(d if config.pi05 else 2 * d, d)
        self.time_mlp_out = Linear(d, d)
        if not config.pi05:
            self.state_proj = Linear(config.max_state_dim, d)
        if config.indicator == "embedding":
            # Starts at zero, so that adding it to a pretrained policy changes nothing.
            self.indicator_embedding = nn.Embedding(len(Indicator), d)

    def context(self, prefix: Prefix, observation: Observation) -> Prefix:
        """Return the prefix with the state token (and its indicator) behind it; pi05 has none.

        The state token sees the prefix and itself, never the actions, so it does not depend on the flow time.
        """
        if self.config.pi05:
            return prefix
        token = self.state_proj(observation.state.float())
        if self.config.indicator == "embedding":
            indicator = observation.indicator
            if indicator is None:
                indicator = torch.zeros(token.shape[0], dtype=torch.long, device=token.device)
            token = token + self.indicator_embedding(indicator).float()
        state = self.expert.encode(token[:, None], prefix.num_valid[:, None], prefix.kv, self.dtype)
        return Prefix(prefix.kv.append(state), prefix.num_valid + 1)

    def time_features(self, time: Float[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Return what the flow time adds to the action tokens (pi0) or feeds to the norms (pi05)."""
        config = self.config
        embedded = time_embedding(time, config.expert.width, config.min_period, config.max_period)
        if config.pi05:
            return F.silu(self.time_mlp_out(F.silu(self.time_mlp_in(embedded))))
        # The first layer acts on [action, time]; its time half is the same for all actions of a chunk.
        weight = self.time_mlp_in.weight[:, config.expert.width :]
        return F.linear(embedded, weight.float(), self.time_mlp_in.bias.float())

    def velocity(
        self,
        context: Prefix,
        x_t: Float[Tensor, "b h a"],
        time_features: Float[Tensor, "b d"],
        *,
        in_place: bool = False,
    ) -> Float[Tensor, "b h a"]:
        """Return the predicted velocity `noise - actions` at x_t, in float32.

        Action tokens see the context and each other. `in_place`: the context has reserved room for them.
        """
        x = self.action_in_proj(x_t.float())
        condition = time_features if self.config.pi05 else None
        if not self.config.pi05:
            weight = self.time_mlp_in.weight[:, : self.config.expert.width]
            x = self.time_mlp_out(F.silu(F.linear(x, weight.float()) + time_features[:, None]))
        positions = context.rope or context.num_valid[:, None] + torch.arange(x.shape[1], device=x.device)
        # The expert's residual stream stays float32: it is small, and rounding it would cost accuracy.
        x = self.expert(x, positions, context.kv, condition, self.dtype, in_place=in_place)
        return self.action_out_proj(x.float())

    def loss(
        self,
        observation: Observation,
        actions: Float[Tensor, "b h a"],
        *,
        noise: Float[Tensor, "k b h a"] | None = None,
        time: Float[Tensor, "k b"] | None = None,
        num_draws: int = 1,
        prefix: Prefix | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b h a"]:
        """Return the squared error of the velocity per element, averaged over the noise draws.

        Several draws share one prefix, which makes them cheap. Actions are normalised and padded. Draws not
        given come from `generator` (on the model's device).
        """
        k = num_draws if noise is None else noise.shape[0]
        if noise is None:
            noise = torch.randn((k, *actions.shape), device=actions.device, generator=generator)
        if time is None:
            time = self.sample_time((k, actions.shape[0]), actions.device, generator)
        x_t, target = interpolate(actions.expand_as(noise), noise, time)
        context = self.context(self.prefix(observation) if prefix is None else prefix, observation)
        features = self.time_features(time.flatten())
        velocity = self.velocity(context.repeat(k), x_t.flatten(0, 1), features)
        return F.mse_loss(velocity.view_as(target), target, reduction="none").mean(0)

    def sample_time(
        self, shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None = None
    ) -> Float[Tensor, "..."]:
        """Return training times as the configuration says."""
        config = self.config
        return sample_time(
            shape,
            alpha=config.time_sampling_beta_alpha,
            scale=config.time_sampling_scale,
            offset=config.time_sampling_offset,
            device=device,
            generator=generator,
        )

    @torch.no_grad()
    def sample(
        self,
        observation: Observation,
        *,
        num_steps: int | None = None,
        noise: Float[Tensor, "b h a"] | None = None,
        guidance: float = 1.0,
        prefix: Prefix | None = None,
        unconditional: Observation | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b h a"]:
        """Return normalised, padded actions: the velocity integrated from noise in `num_steps` Euler steps.

        With guidance s the velocity is `v_u + s (v_c - v_u)`, where v_u is that of the `unconditional`
        observation: by default the same with the indicator withheld, which shares the prefix; otherwise one
        with the same images and another prompt. s = 1 and s = 0 cost one pass, other values one pass at
        twice the batch.
        """
        num_steps = self.config.num_inference_steps if num_steps is None else num_steps
        noise = self._noise(observation, noise, generator)
        contexts, images = [], None
        if guidance != 0.0:
            if prefix is None:
                images = self.image_tokens(observation)
                prefix = self.prefix(observation, images)
            contexts.append(self.context(prefix, observation))
        if guidance != 1.0:
            if unconditional is not None:
                prefix = self.prefix(unconditional, images)
            elif prefix is None:
                prefix = self.prefix(observation)
            contexts.append(self.context(prefix, unconditional or replace(observation, indicator=None)))
        with kept_scales(self.expert):
            return euler(self._field(contexts, num_steps, guidance), noise, num_steps)

    @torch.no_grad()
    def sample_path(
        self,
        observation: Observation,
        added: FlowNoise,
        *,
        num_steps: int | None = None,
        noise: Float[Tensor, "b h a"] | None = None,
        prefix: Prefix | None = None,
    ) -> FlowPath:
        """Return a stochastic sample (normalised, padded) with its way: see `pi0.flow.stochastic_euler`.

        Without guidance. At noise level 0 its actions are those of `sample`, bit for bit.
        """
        num_steps = self.config.num_inference_steps if num_steps is None else num_steps
        noise = self._noise(observation, noise, None)
        context = self.context(self.prefix(observation) if prefix is None else prefix, observation)
        with kept_scales(self.expert):
            return stochastic_euler(self._field([context], num_steps, 1.0), noise, num_steps, added)

    def _noise(
        self,
        observation: Observation,
        noise: Float[Tensor, "b h a"] | None,
        generator: torch.Generator | None,
    ) -> Float[Tensor, "b h a"]:
        shape = (observation.batch_size, self.config.chunk_size, self.config.max_action_dim)
        if noise is None:
            return torch.randn(shape, device=observation.state.device, generator=generator)
        if noise.shape != shape:
            raise ValueError(f"noise: expected {shape}, found {tuple(noise.shape)}")
        return noise

    def _field(
        self, contexts: list[Prefix], num_steps: int, guidance: float
    ) -> Callable[[Float[Tensor, "b h a"], int], Float[Tensor, "b h a"]]:
        """Return the velocity as a function of x and the number of the step."""
        context = concatenate_prefixes(contexts)
        steps = torch.arange(num_steps, device=context.num_valid.device)
        horizon = torch.arange(self.config.chunk_size, device=context.num_valid.device)
        rope = rope_tables(context.num_valid[:, None] + horizon, self.expert.head_dim)
        context = Prefix(context.kv.reserve(self.config.chunk_size), context.num_valid, rope)
        features = self.time_features(step_time(steps, num_steps))
        n = len(contexts)

        def velocity(x: Tensor, i: int) -> Tensor:
            row, x = features[i].expand(n * x.shape[0], -1), x if n == 1 else x.repeat(n, 1, 1)
            v = self.velocity(context, x, row, in_place=True)
            if n == 1:
                return v
            conditional, unconditional = v.chunk(2)
            return torch.lerp(unconditional, conditional, guidance)

        return velocity

    def freeze(self, which: str | None = None, frozen_dtype: str | None = None) -> None:
        """Withhold gradients from the parameters that `frozen_names` names; None: as `config` says.

        From then on they are held in the dtypes of `training_dtypes`.
        """
        which = self.config.freeze_filter() if which is None else which
        hold(self, training_dtypes(self, self.dtype, which, frozen_dtype))
        frozen = frozen_names(self, which)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name not in frozen)

    def to_inference(self) -> "Pi0Model":
        """Hold the large weights in the compute dtype and return the model; not for training."""
        hold(self, inference_dtypes(self, self.dtype))
        return self

    def compile_blocks(self, **options: object) -> None:
        """Compile each transformer block for itself (regional compilation): quick, and shapes stay free."""
        for block in (*self.vision.blocks, *self.vlm.blocks, *self.expert.blocks):
            block.compile(**options)

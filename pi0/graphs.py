"""Sampling as a CUDA graph, which launches at once the many kernels that a small batch waits for.

A graph has fixed shapes, so prompts are padded to a few lengths, and each shape is captured when it first
comes. What is computed stays `Pi0Model.sample`: padding is masked, and equals its absence up to rounding.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pi0.model import Pi0Model
from pi0.observation import Observation
from pi0.prefix import Prefix

type Compute = Callable[[], Tensor]
type Recorder = Callable[[Compute], Compute]
"""Turns a computation on fixed memory into what repeats it there; the result is overwritten each time."""


class CudaRecorder:
    """Captures on the current CUDA device; all graphs of a recorder share their intermediate memory."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, compute: Compute) -> Compute:
        """Return the replay of the captured graph."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        # Libraries choose their kernels and take their work space in the first runs, outside of the capture.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                compute()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU meanwhile, such as those that pin a loader's batches.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = compute()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay

    def __getstate__(self) -> dict[str, Any]:
        """Return a recorder without memory; a copy takes its own."""
        return {"_pool": None}


class GraphedSampler:
    """`Pi0Model.sample` by replay; captures anew for a new shape, or when weights have moved.

    Weights that training changes in place need no new capture. At most `max_captures` shapes are kept, those
    used last; each holds its inputs and its result, and the intermediate memory of the largest is shared.
    """

    def __init__(
        self,
        model: Pi0Model,
        record: Recorder | None = None,
        *,
        prompt_bucket: int = 16,
        max_captures: int = 8,
    ) -> None:
        """Sample from `model`; prompts are padded to multiples of `prompt_bucket` tokens."""
        for name, value in {"prompt_bucket": prompt_bucket, "max_captures": max_captures}.items():
            if value < 1:
                raise ValueError(f"{name}: expected 1 or more, found {value}")
        self.model, self.record = model, record or CudaRecorder()
        self.prompt_bucket, self.max_captures = prompt_bucket, max_captures
        self.num_captures = 0
        self._captures: OrderedDict[tuple[Any, ...], _Capture] = OrderedDict()
        self._weights: tuple[int, ...] = ()

    def __call__(
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
        """Return what `Pi0Model.sample` returns; a prefix at hand is not captured but computed with."""
        options = {"num_steps": num_steps, "guidance": guidance}
        if prefix is not None:
            return self.model.sample(
                observation,
                noise=noise,
                prefix=prefix,
                unconditional=unconditional,
                generator=generator,
                **options,
            )
        if noise is None:
            config = self.model.config
            shape = (observation.batch_size, config.chunk_size, config.max_action_dim)
            noise = torch.randn(shape, device=observation.state.device, generator=generator)
        inputs = [self._padded(o) for o in (observation, unconditional) if o is not None]
        self._forget_if_weights_moved()
        key = (*map(_shapes, inputs), tuple(noise.shape), num_steps, guidance)
        capture = self._captures.pop(key, None)
        if capture is None:
            while len(self._captures) >= self.max_captures:
                self._captures.popitem(last=False)
            capture = _Capture(self.model, self.record, inputs, noise, options)
            self.num_captures += 1
        self._captures[key] = capture
        return capture.run(inputs, noise)

    def _padded(self, observation: Observation) -> Observation:
        columns = observation.tokens.shape[1]
        return observation.pad_prompt(-(-columns // self.prompt_bucket) * self.prompt_bucket)

    def _forget_if_weights_moved(self) -> None:
        weights = tuple(parameter.data_ptr() for parameter in self.model.parameters())
        if weights != self._weights:
            self._captures.clear()
            self._weights = weights

    def __getstate__(self) -> dict[str, Any]:
        """Return the sampler without its captures, which belong to this process and this model."""
        return {**vars(self), "_captures": OrderedDict(), "_weights": ()}


class _Capture:
    """The memory that one graph reads and writes, and its replay."""

    def __init__(
        self,
        model: Pi0Model,
        record: Recorder,
        inputs: list[Observation],
        noise: Float[Tensor, "b h a"],
        options: dict[str, Any],
    ) -> None:
        self.inputs, self.noise = [_copied(observation) for observation in inputs], noise.clone()
        observation, unconditional = self.inputs[0], self.inputs[1] if len(inputs) > 1 else None
        self.replay = record(
            lambda: model.sample(observation, noise=self.noise, unconditional=unconditional, **options)
        )

    @torch.no_grad()
    def run(self, inputs: list[Observation], noise: Float[Tensor, "b h a"]) -> Float[Tensor, "b h a"]:
        """Return the actions for inputs of the captured shapes."""
        for own, new in zip(self.inputs, inputs, strict=True):
            for name, tensor in _tensors(own).items():
                tensor.copy_(getattr(new, name), non_blocking=True)
        self.noise.copy_(noise, non_blocking=True)
        return self.replay().clone()


def _tensors(observation: Observation) -> dict[str, Tensor]:
    return {name: value for name, value in vars(observation).items() if isinstance(value, Tensor)}


def _copied(observation: Observation) -> Observation:
    return replace(observation, **{name: value.clone() for name, value in _tensors(observation).items()})


def _shapes(observation: Observation) -> tuple[Any, ...]:
    return tuple((name, tuple(value.shape)) for name, value in _tensors(observation).items())

"""Rollouts: episodes of a policy from given initial states, many at once, reproducible one by one.

The slots form two halves: while the episodes of one are simulated, the policy infers for those of the other.

An episode is a function of policy, initial state and noise seed alone: each has a random generator of its
own, and inference always runs at the batch of a half and at one length of prompts, because the shape of a
batch changes its rounding.

Axes: b batch, h action horizon, e actions to execute, a action dim.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, cycle
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from pi0 import PI0Policy
from pi0.ript import debugging
from pi0.ript.envs import BatchedEnv, ChunkResult, EnvObservation, InitialState, Task
from pi0.ript.episode import START, Chunks, Rollout, with_notes
from pi0.ript.progress import print_above

MAX_ATTEMPTS = 3  # of an episode that dead or hanging workers interrupt


@runtime_checkable
class ChunkPolicy(Protocol):
    """What rollouts need of a policy."""

    def chunks(
        self,
        observations: Sequence[EnvObservation],
        tasks: Sequence[Task],
        generators: Sequence[torch.Generator],
        among: Collection[Task],
    ) -> Chunks:
        """Return the actions to execute next, one chunk per observation, noise from its generator.

        `NotedChunks` come with what is to be kept of each chunk in its episode (`Rollout.chunks`).

        `among`: the tasks that the other observations of this call and the next ones can be of. A chunk must
        not depend on which of them are.
        """
        ...


@dataclass(frozen=True)
class FunctionPolicy:
    """A policy that is no more than a function."""

    chunks: Callable[..., Chunks]
    """See `ChunkPolicy.chunks`."""


class GuidedPolicy:
    """A pi0 policy as rollouts use it: guided towards a positive advantage, `n_action_steps` at a time."""

    def __init__(self, policy: PI0Policy, guidance: float = 1.0) -> None:
        if policy.training:
            policy.eval()  # here, where all processes are: one whose policy is in shards gathers it
        self.policy, self.guidance = policy, guidance
        self._was_saved = False

    def chunks(
        self,
        observations: Sequence[EnvObservation],
        tasks: Sequence[Task],
        generators: Sequence[torch.Generator],
        among: Collection[Task],
    ) -> Chunks:
        """Return the actions to execute next."""
        config = self.policy.config
        # pi05's prompts differ even within a task: they hold the state.
        prompts_differ = config.pi05 or len({task.instruction for task in among}) > 1
        shape = (config.chunk_size, config.max_action_dim)
        noise = torch.stack([torch.randn(shape, generator=g) for g in generators])
        was_training = self.policy.training
        self.policy.eval()
        batch = observation_batch(observations, tasks)
        if debugging.is_asked_for(debugging.PROCESSED) and not self._was_saved:
            debugging.save_processed(self.policy.preprocess(batch), tasks[0].instruction)
            self._was_saved = True
        chunks = self._sample(batch, noise.to(self.policy.device), prompts_differ, generators)
        self.policy.train(was_training)
        return chunks

    def _sample(
        self,
        batch: Mapping[str, Any],
        noise: Float[Tensor, "b h padded_a"],
        pad_prompts: bool,
        _generators: Sequence[torch.Generator],
    ) -> Chunks:
        """Return the chunks of a batch; a subclass can draw from the generators too."""
        sample = self.policy.use_graphs().sample_actions
        return self._executed(sample(batch, noise=noise, guidance=self.guidance, pad_prompts=pad_prompts))

    def _executed(self, actions: Float[Tensor, "b h a"]) -> Float32[np.ndarray, "b e a"]:
        return actions[:, : self.policy.config.n_action_steps].cpu().numpy()


def observation_batch(
    observations: Sequence[EnvObservation], tasks: Sequence[Task]
) -> dict[str, torch.Tensor | list[str]]:
    """Return the observations as a batch with the policy's keys."""
    images = {
        f"observation.images.{camera}": torch.from_numpy(np.stack([o.images[camera] for o in observations]))
        for camera in observations[0].images
    }
    states = torch.from_numpy(np.stack([o.state for o in observations]))
    return {**images, "observation.state": states, "task": [task.instruction for task in tasks]}


@dataclass
class _Episode:
    """An episode in progress."""

    number: int
    """Its place in the list of initial states."""
    generator: torch.Generator
    observation: EnvObservation | None = None
    """What the policy sees; None while the episode begins."""
    states: list[np.ndarray] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    observed: list[int] = field(default_factory=list)
    frames: list[EnvObservation] = field(default_factory=list)
    notes: list[Mapping[str, np.ndarray]] = field(default_factory=list)


@dataclass(frozen=True)
class _Act:
    """A chunk of one episode that is being executed, and what the policy noted of it."""

    actions: Float32[np.ndarray, "e a"]
    notes: Mapping[str, np.ndarray]


class EpisodeLostError(RuntimeError):
    """An episode was interrupted by its environment too many times to blame a single worker."""

    explains_itself = True


def rollout(
    env: BatchedEnv,
    policy: ChunkPolicy,
    states: Sequence[InitialState],
    seeds: Sequence[int],
    *,
    turns: Iterable[int] | None = None,
    render_every: int | None = None,
    keep_images: bool = True,
    on_finished: Callable[[Rollout], None] | None = None,
) -> list[Rollout]:
    """Return one finished episode per initial state, in order, each with the noise of its seed.

    With `turns`, only those whose numbers it gives; the next one is asked for when a slot is free.

    An episode that the infrastructure interrupts is run again from its start, so that it counts once. With
    `render_every`, images are also kept inside chunks, every so many steps. Without `keep_images` none are,
    which is what long evaluations have memory for.
    """
    if len(seeds) != len(states):
        raise ValueError(f"seeds: expected one per initial state, {len(states)}, found {len(seeds)}")
    numbers = iter(range(len(states)) if turns is None else turns)
    return _Runner(env, policy, states, seeds, numbers, render_every, keep_images, on_finished).run()


RolloutFunction = Callable[..., list[Rollout]]
"""What runs episodes: `rollout`, or something around it with the same arguments."""


@dataclass
class _Runner:
    """Keeps the slots busy: a slot whose episode ends takes the next one at once."""

    env: BatchedEnv
    policy: ChunkPolicy
    states: Sequence[InitialState]
    seeds: Sequence[int]
    numbers: Iterator[int]
    render_every: int | None
    keep_images: bool
    on_finished: Callable[[Rollout], None] | None

    def __post_init__(self) -> None:
        self.interrupted: list[int] = []
        self.attempts = [0] * len(self.states)
        self.finished: dict[int, Rollout] = {}
        self.running: dict[int, _Episode] = {}
        self.acts: dict[int, _Act] = {}

    def run(self) -> list[Rollout]:
        under_way: set[range] = set()
        try:
            for half in cycle(self.env.halves):
                if half in under_way:
                    self._receive()
                under_way.discard(half)
                if self._send(half):
                    under_way.add(half)
                elif not under_way:
                    break
        finally:
            self.env.drop_unreceived()
        return [self.finished[i] for i in sorted(self.finished)]

    def _send(self, half: range) -> bool:
        """Start episodes in free slots, let the others act, and return whether there was anything to do."""
        acting = [slot for slot in half if slot in self.running]
        free = [slot for slot in half if slot not in self.running]
        waiting = chain(iter(self._interrupted_number, None), self.numbers)
        started = dict(zip(free, waiting, strict=False))
        for slot, i in started.items():
            self.running[slot] = _Episode(i, torch.Generator().manual_seed(self.seeds[i]))
        self.acts |= self._act(acting) if acting else {}
        if acting or started:
            states = {slot: self.states[i] for slot, i in started.items()}
            self.env.send(states, {slot: self.acts[slot].actions for slot in acting}, self.render_every)
        return bool(acting or started)

    def _receive(self) -> None:
        answers = self.env.receive()
        for slot, observation in answers.observations.items():
            self.running[slot].observation = observation
        for slot, result in answers.results.items():
            self._advance(slot, self.acts.pop(slot, None), result)

    def _interrupted_number(self) -> int | None:
        return self.interrupted.pop() if self.interrupted else None

    def _act(self, slots: Sequence[int]) -> dict[int, _Act]:
        episodes = [self.running[slot] for slot in slots]
        # Copies of the first episode fill the batch; their noise comes from a generator of their own.
        idle = len(self.env.halves[0]) - len(slots)
        spare = torch.Generator().manual_seed(0)
        batch = [(episode, episode.generator) for episode in episodes] + [(episodes[0], spare)] * idle
        answer = self.policy.chunks(
            [episode.observation for episode, _ in batch if episode.observation is not None],
            [self.env.tasks[self.states[episode.number].task] for episode, _ in batch],
            [generator for _, generator in batch],
            self.env.tasks.values(),
        )
        chunks = with_notes(answer)
        notes = [
            {name: np.asarray(values[i]) for name, values in chunks.notes.items()} for i in range(len(slots))
        ]
        return {slot: _Act(chunks.actions[i], notes[i]) for i, slot in enumerate(slots)}

    def _advance(self, slot: int, act: _Act | None, result: ChunkResult) -> None:
        episode = self.running[slot]
        if result.aborted is not None:
            self._again(slot, result.aborted)
            return
        assert act is not None
        assert episode.observation is not None
        step = sum(len(a) for a in episode.actions)
        if act.notes:
            episode.notes.append({**act.notes, START: np.array(step)})
        if self.keep_images:
            episode.observed += [step, *(step + frame.offset for frame in result.frames)]
            episode.frames += [episode.observation, *(frame.observation for frame in result.frames)]
        episode.states.append(result.states)
        episode.actions.append(act.actions[: result.executed])
        assert result.observation is not None
        episode.observation = result.observation
        if result.done:
            del self.running[slot]
            finished = self._finish(episode, result.success)
            self.finished[episode.number] = finished
            if self.on_finished is not None:
                self.on_finished(finished)

    def _again(self, slot: int, reason: str) -> None:
        number = self.running.pop(slot).number
        self.attempts[number] += 1
        if self.attempts[number] >= MAX_ATTEMPTS:
            raise EpisodeLostError(
                f"the episode from state {self.states[number].hash[:16]} of {self.states[number].task} was "
                f"interrupted {MAX_ATTEMPTS} times, the last time because: {reason}"
            )
        print_above(f"an episode is run again, {sum(self.attempts)} so far in this rollout: {reason}")
        self.interrupted.append(number)

    def _finish(self, episode: _Episode, success: bool) -> Rollout:
        state, notes = self.states[episode.number], episode.notes
        cameras = episode.frames[0].images if self.keep_images else ()
        return Rollout(
            task=self.env.tasks[state.task],
            initial_state=state,
            seed=self.seeds[episode.number],
            success=success,
            states=np.concatenate(episode.states),
            actions=np.concatenate(episode.actions).astype(np.float32),
            observed=np.array(episode.observed, np.int64),
            images={c: np.stack([frame.images[c] for frame in episode.frames]) for c in cameras},
            chunks={name: np.stack([note[name] for note in notes]) for name in (notes[0] if notes else ())},
        )

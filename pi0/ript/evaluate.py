"""Evaluation: success of a policy on fixed held-out states, and two policies compared on the same ones.

An evaluation is a list of episodes, at most one per initial state.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pi0.ript.envs import BatchedEnv, InitialState
from pi0.ript.episode import Rollout
from pi0.ript.peers import ALONE, Peers, share, tell_wait
from pi0.ript.progress import progress_bar
from pi0.ript.rollout import ChunkPolicy, RolloutFunction, rollout

Interval = tuple[float, float]
_VIDEO_STEPS = 2  # between the images of a video


@dataclass(frozen=True)
class EpisodeResult:
    """One episode of an evaluation."""

    task: str
    """Task id, "suite/name"."""
    state: str
    """Hash of the initial state."""
    success: bool
    num_steps: int
    """Policy steps until success or deadline."""


@dataclass(frozen=True)
class Evaluation:
    """The episodes of one policy, in the order of their initial states."""

    seed: int
    """The seed of the noise; an episode's noise is a function of it and of the initial state."""
    episodes: tuple[EpisodeResult, ...]
    recorded: tuple[Rollout, ...] = field(default=(), repr=False, compare=False)
    """The episodes to be shown in a video, with their images."""

    @property
    def num_episodes(self) -> int:
        """Return the number of episodes."""
        return len(self.episodes)

    @property
    def num_successes(self) -> int:
        """Return the number of successes."""
        return sum(episode.success for episode in self.episodes)

    @property
    def success_rate(self) -> float:
        """Return the share of successes."""
        return self.num_successes / self.num_episodes

    @property
    def interval(self) -> Interval:
        """Return the 95% Wilson interval of the success rate."""
        return wilson_interval(self.num_successes, self.num_episodes)

    @property
    def mean_steps_to_success(self) -> float | None:
        """Return the mean length of the successful episodes, None when there are none."""
        steps = [episode.num_steps for episode in self.episodes if episode.success]
        return sum(steps) / len(steps) if steps else None

    def by_task(self) -> "dict[str, Evaluation]":
        """Return the evaluation of each task by its id, in order of first appearance, without images."""
        return {
            task: Evaluation(self.seed, tuple(e for e in self.episodes if e.task == task))
            for task in dict.fromkeys(e.task for e in self.episodes)
        }

    def to_dict(self) -> dict[str, Any]:
        """Return figures and episodes as plain values for JSON."""
        return {
            **_figures(self),
            "seed": self.seed,
            "tasks": {task: _figures(evaluation) for task, evaluation in self.by_task().items()},
            "episodes": [asdict(episode) for episode in self.episodes],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Evaluation":
        """Return the evaluation that `to_dict` described, without recorded episodes."""
        return cls(values["seed"], tuple(EpisodeResult(**episode) for episode in values["episodes"]))

    def __str__(self) -> str:
        """Return successes, rate and interval in one line."""
        low, high = self.interval
        return (
            f"{self.num_successes}/{self.num_episodes} {100 * self.success_rate:.1f}% "
            f"[{100 * low:.1f}, {100 * high:.1f}]"
        )


def joined(parts: Sequence[Evaluation]) -> Evaluation:
    """Return the evaluation of all episodes of several, with one seed."""
    return Evaluation(
        parts[0].seed,
        tuple(episode for part in parts for episode in part.episodes),
        tuple(rollout for part in parts for rollout in part.recorded),
    )


@dataclass(frozen=True)
class Comparison:
    """What changed between two evaluations on the same states; the pairs are the states."""

    num_episodes: int
    num_won: int
    """States on which only the second policy succeeds."""
    num_lost: int
    """States on which only the first policy succeeds."""
    difference: float
    """Success rate of the second policy minus that of the first."""
    interval: Interval
    """95% interval of the difference: Newcombe's hybrid score method for paired proportions."""
    p_value: float
    """Two-sided exact McNemar test of no difference."""

    def __str__(self) -> str:
        """Return difference and interval, in percentage points, in one line."""
        low, high = self.interval
        return f"{100 * self.difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def evaluate(
    env: BatchedEnv,
    policy: ChunkPolicy,
    states: Sequence[InitialState],
    seed: int = 0,
    *,
    num_recorded: int = 0,
    peers: Peers = ALONE,
    run: RolloutFunction = rollout,
) -> Evaluation:
    """Return the result of one episode from each state, the same on all peers, who share the work.

    Two policies evaluated with one seed meet the same states and the same noise, whichever other states there
    are.

    Args:
        env: The environment that runs the episodes.
        policy: The policy to be judged.
        states: Held out from training, each one once.
        seed: The seed of the noise.
        num_recorded: Episodes per task, the first ones, that are kept with their images for a video.
        peers: The processes that evaluate together.
        run: The function that runs a list of episodes; see `rollout`.

    Raises:
        ValueError: There are no states, or one occurs twice.
    """
    _require_distinct(states)
    shown = _first_of_each_task(states, num_recorded)
    parts = [[s for s in states if s in shown], [s for s in states if s not in shown]]
    turns = [peers.turns(len(part)) for part in parts]
    results: list[EpisodeResult] = []
    with progress_bar(
        total=len(share(states, peers)), unit="episode", desc="evaluation", disable=peers.rank > 0
    ) as bar:

        def finish(episode: Rollout) -> None:
            state = episode.initial_state
            results.append(EpisodeResult(state.task, state.hash, episode.success, len(episode)))
            turns[1].note_finished()
            bar.set_postfix_str(f"{sum(r.success for r in results)} succeeded", refresh=False)
            bar.update()

        def episodes_from(number: int, **images: Any) -> list[Rollout]:
            part = parts[number]
            seeds = [episode_seed(seed, state) for state in part]
            return run(env, policy, part, seeds, turns=turns[number], on_finished=finish, **images)

        recorded = episodes_from(0, render_every=_VIDEO_STEPS)
        episodes_from(1, keep_images=False)
        bar.total = bar.n  # its share was a guess
    by_state = {r.state: r for part in peers.gather(results) for r in part}
    tell_wait("evaluation", turns[1], peers)
    videos = {r.initial_state: r for part in peers.gather(recorded) for r in part}
    return Evaluation(
        seed,
        tuple(by_state[state.hash] for state in states),
        tuple(videos[state] for state in states if state in videos),
    )


def episode_seed(seed: int, state: InitialState) -> int:
    """Return the noise seed of a state's episode, below 2^32: a function of these two alone."""
    digest = hashlib.sha256(f"{seed} {state.hash}".encode()).digest()
    return int.from_bytes(digest[:4], "little")  # torch's CPU generator has no more bits of seed


def wilson_interval(num_successes: int, num_episodes: int, z: float = 1.96) -> Interval:
    """Return the score interval of a proportion (Wilson 1927), by default of 95%."""
    k, n = num_successes, num_episodes
    if not 0 <= k <= n or n < 1:
        raise ValueError(f"expected 0 <= num_successes <= num_episodes >= 1, found {k} and {n}")
    p, scale = k / n, 1 + z * z / n
    center = (p + z * z / (2 * n)) / scale
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / scale
    # The bounds at k = 0 and k = n are exact; rounding must not move the rate out of its own interval.
    return (0.0 if k == 0 else center - half), (1.0 if k == n else center + half)


def compare(before: Evaluation, after: Evaluation) -> Comparison:
    """Return the paired comparison of two evaluations on the same states.

    Raises:
        ValueError: The states differ.
    """
    first = {episode.state: episode.success for episode in before.episodes}
    second = {episode.state: episode.success for episode in after.episodes}
    if first.keys() != second.keys():
        raise ValueError(
            "a paired comparison needs evaluations on the same initial states, found "
            f"{len(first.keys() - second.keys())} only before and {len(second.keys() - first.keys())} only "
            "after; evaluate both policies on one list of states"
        )
    pairs = Counter((first[state], second[state]) for state in first)
    both, won, lost = pairs[True, True], pairs[False, True], pairs[True, False]
    n = len(first)
    return Comparison(
        num_episodes=n,
        num_won=won,
        num_lost=lost,
        difference=(won - lost) / n,
        interval=paired_difference_interval(both, won, lost, n - both - won - lost),
        p_value=mcnemar_p_value(won, lost),
    )


def paired_difference_interval(both: int, won: int, lost: int, neither: int, z: float = 1.96) -> Interval:
    """Return the interval of (won - lost) / n, by default of 95%.

    Method 10 of Newcombe, Improved confidence intervals for the difference between binomial proportions based
    on paired data, Statistics in Medicine 17 (1998) 2635-2650: the Wilson intervals of both proportions,
    joined with their (continuity-corrected) correlation.
    """
    n = both + won + lost + neither
    p1, p2 = (both + lost) / n, (both + won) / n
    (low1, high1), (low2, high2) = wilson_interval(both + lost, n, z), wilson_interval(both + won, n, z)
    margins = (both + lost) * (won + neither) * (both + won) * (lost + neither)
    covariance = both * neither - won * lost
    if covariance > 0:
        covariance = max(covariance - n / 2, 0)
    phi = covariance / math.sqrt(margins) if margins else 0.0

    def distance(a: float, b: float) -> float:
        return math.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))

    down, up = distance(p2 - low2, high1 - p1), distance(high2 - p2, p1 - low1)
    return (p2 - p1) - down, (p2 - p1) + up


def mcnemar_p_value(won: int, lost: int) -> float:
    """Return the two-sided exact p-value: `won` of the won and lost pairs are Binomial(1/2)."""
    n = won + lost
    tail = sum(math.comb(n, i) for i in range(min(won, lost) + 1))
    return min(1.0, 2 * tail / 2**n)


def _figures(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "num_successes": evaluation.num_successes,
        "num_episodes": evaluation.num_episodes,
        "success_rate": evaluation.success_rate,
        "interval": list(evaluation.interval),
        "mean_steps_to_success": evaluation.mean_steps_to_success,
    }


def _require_distinct(states: Sequence[InitialState]) -> None:
    if not states:
        raise ValueError("states: expected at least one initial state to evaluate on, found none")
    state, times = Counter(states).most_common(1)[0]
    if times > 1:
        raise ValueError(
            f"states: expected each initial state once, found number {state.index} of {state.task!r} {times} "
            "times; it would run the same episode again"
        )


def _first_of_each_task(states: Sequence[InitialState], count: int) -> set[InitialState]:
    tasks = dict.fromkeys(state.task for state in states)
    return {state for task in tasks for state in [s for s in states if s.task == task][:count]}

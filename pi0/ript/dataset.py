"""Real initial states as a torch Dataset, drawn through a DataLoader in one resumable global order."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

from torch.utils.data import DistributedSampler

from pi0.errors import UnusableError
from pi0.ript.environments import get_environment
from pi0.ript.envs import BatchedEnv, InitialState, load_initial_states, save_initial_states
from pi0.ript.groups import Collection, InitialStateDataset, state_at

_PLACED_BY = ("mujoco", "metaworld", "hf-libero", "robosuite")
"""Packages whose version decides where the objects of a training state are."""


class LiberoInitStateDataset(InitialStateDataset):
    """The training states of a benchmark's tasks, never one of its held-out (LIBERO: benchmark) states.

    They are made once, by the simulator, and kept in a checked file. Any benchmark of
    `pi0.ript.environments` will do, Meta-World too.
    """

    def __init__(
        self,
        benchmark_name: str,
        task_names: Sequence[str | int] | None = None,
        num_states: int = 50,
        *,
        cache: str | Path = "pi0/ript/output/initial_states",
        env: BatchedEnv | None = None,
    ) -> None:
        """Make the states, or find them in the cache.

        Args:
            benchmark_name: See `pi0.ript.environments`.
            task_names: Names, or numbers in the suite's order; None for the benchmark's own choice.
            num_states: How many states each task has.
            cache: Directory of the files.
            env: An environment of these tasks, which makes the states; None: one is started for that.
        """
        maker = env or get_environment(benchmark_name, task_names=task_names, num_workers=0).make()
        self.tasks = tuple(maker.tasks)
        key = [self.tasks, num_states, {name: version(name) for name in _PLACED_BY}]
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
        self.path = Path(cache) / f"{benchmark_name}-{digest}.npz"
        if not self.path.exists():
            indices = range(num_states)
            states = [s for task in maker.tasks for s in maker.initial_states(task, "train", indices)]
            save_initial_states(self.path, states)
        if env is None:
            maker.close()
        self.states = load_initial_states(self.path, self.tasks)


def collate_fn_state(samples: list[InitialState]) -> list[InitialState]:
    """Return a batch of states as they are: those of different tasks differ in length."""
    return samples


def drawn(loader: Iterable[list[InitialState]], report: Callable[[str], object]) -> Iterator[InitialState]:
    """Yield the states of the loader's batches, and report the first batch."""
    for number, batch in enumerate(loader):
        if number == 0:
            report(f"✓ 批处理采样正常工作 / batches are drawn: state {batch[0].index} of {batch[0].task}")
        yield from batch


class StateSampler(DistributedSampler[InitialState]):
    """One process's share of an endless, seeded order of the states, which `state_dict` lets continue.

    Every process takes each `num_replicas`-th state of the same global order, whatever their number. With
    `skip_threshold`, a state whose whole group succeeded is passed over that many times, then tried again
    (upstream RIPT's rule).
    """

    def __init__(
        self,
        dataset: LiberoInitStateDataset,
        num_replicas: int = 1,
        rank: int = 0,
        seed: int = 0,
        skip_threshold: int = 0,
    ) -> None:
        if num_replicas > len(dataset):
            raise UnusableError(
                f"num_init_states: expected at least one state for each of the {num_replicas} processes, "
                f"found {len(dataset)}"
            )
        super().__init__(dataset, num_replicas, rank, seed=seed)
        self.skip_threshold = skip_threshold
        self._index = {state.hash: i for i, state in enumerate(dataset.states)}
        self._position = 0  # in the endless order, where the iteration begins
        self._skips: dict[int, int] = {}  # mastered states: how often each is still passed over
        self._ahead = self._walk()

    def __iter__(self) -> Iterator[int]:
        """Yield the numbers of this process's states, without end."""
        while True:
            yield next(self._ahead)

    def update(self, collection: Collection) -> None:
        """Move past the states that were tried, by all processes, and remember which are mastered."""
        mastered: dict[int, bool] = {}
        for group in collection.tried:
            expected, index = self._next(), self._index[group.rollouts[0].initial_state.hash]
            if index != expected:
                raise RuntimeError(
                    f"expected state {expected} to be tried, found {index}: the order was left"
                )
            mastered[index] = bool(group.rewards.all())
        for index, is_mastered in mastered.items():
            self._skips[index] = self.skip_threshold if is_mastered else 0
        self._ahead = self._walk()

    @property
    def num_mastered(self) -> int:
        """Return how many states are passed over at present."""
        return sum(left > 0 for left in self._skips.values())

    def state_dict(self) -> dict[str, Any]:
        """Return the position, for a checkpoint."""
        return {"position": self._position, "skips": {str(i): n for i, n in self._skips.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was called."""
        self._position = state["position"]
        self._skips = {int(i): n for i, n in state["skips"].items()}
        self._ahead = self._walk()

    def _walk(self) -> Iterator[int]:
        """Yield this process's states from the position on; what is mastered stays as it is meanwhile."""
        ahead = copy(self)
        ahead._skips = dict(self._skips)
        for number in count():
            index = ahead._next()
            if number % self.num_replicas == self.rank:
                yield index

    def _next(self) -> int:
        """Move to the next state that is not passed over and return its number."""
        while True:
            index = state_at(self._position, len(self._index), self.seed)
            self._position += 1
            if self._skips.get(index, 0) == 0:
                return index
            self._skips[index] -= 1

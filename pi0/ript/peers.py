"""The processes that train together: the share of the work of each, and what the others did."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pi0.ript.progress import print_above

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pi0.tensor_files import Deferred


class Turns(Iterator[int]):
    """The numbers of a list of work, of which a process gets the next one that nobody has begun when it asks.

    So a process whose work is done early goes on with what another has not begun.
    """

    def __init__(self, count: int, take: Callable[[int], int]) -> None:
        """Give numbers below `count`; `take(n)` takes the next n for this process and returns the first."""
        self._count, self._take = count, take
        self._idle_since = time.monotonic()
        self.taken: list[int] = []
        """What this process has got."""

    def __next__(self) -> int:
        """Return the next number."""
        number = self._take(1)
        if number >= self._count:
            raise StopIteration
        self.taken.append(number)
        return number

    def end(self) -> None:
        """Leave what nobody has begun, on all processes."""
        self._take(self._count)

    def note_finished(self) -> None:
        """Note that this process has finished something, after which it may be idle."""
        self._idle_since = time.monotonic()

    def waited(self) -> float:
        """Return for how many seconds this process has had nothing to do."""
        return time.monotonic() - self._idle_since


@runtime_checkable
class Peers(Protocol):
    """One process among `size` equal ones."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        ...

    @property
    def size(self) -> int:
        """Number of processes."""
        ...

    @property
    def is_sharded(self) -> bool:
        """Whether each of them holds a part of what is trained, and writes that."""
        ...

    @property
    def group(self) -> Any:
        """Their process group for objects; None: torch's own, or there is one process alone."""
        ...

    @property
    def background(self) -> "Peers | None":
        """The same processes, to be used in a thread beside the training; None: nothing is done there."""
        ...

    def lending(self) -> AbstractContextManager[None]:
        """Let rank 0 read whole what is in parts meanwhile; the others enter to lend, until it leaves."""
        ...

    def whole(self, model: "nn.Module", values: "Mapping[str, Tensor]") -> "dict[str, Deferred]":
        """Return values of a model's parameters, by name, each whole when it is read, in `lending` on rank 0.

        Where the model is in parts so are the values, and the parameters that they leave out are added.
        """
        ...

    def copied(self, tensor: "Tensor") -> "Tensor":
        """Return a copy, in the memory of this machine, of what is here of a tensor."""
        ...

    def gather[T](self, items: list[T]) -> list[list[T]]:
        """Return the lists of all processes by rank, the same on each; every process must call it."""
        ...

    def turns(self, count: int) -> Turns:
        """Return the numbers below `count`, for whoever asks first; every process must call it."""
        ...


class Alone:
    """One process without peers."""

    rank = 0
    size = 1
    is_sharded = False
    group = None
    background = None

    def lending(self) -> AbstractContextManager[None]:
        """Return nothing to wait for."""
        return nullcontext()

    def whole(self, model: "nn.Module", values: "Mapping[str, Tensor]") -> "dict[str, Deferred]":
        """Return the values."""
        from pi0.tensor_files import Deferred  # torch comes with it

        return {name: Deferred.of(value.detach()) for name, value in values.items()}

    def copied(self, tensor: "Tensor") -> "Tensor":
        """Return a copy."""
        return tensor.detach().to("cpu", copy=True)

    def gather[T](self, items: list[T]) -> list[list[T]]:
        """Return the one list."""
        return [items]

    def turns(self, count: int) -> Turns:
        """Return all numbers, in their order."""
        return turns_alone(count)


ALONE = Alone()


def turns_alone(count: int) -> Turns:
    """Return all numbers below `count`, in their order."""
    position = 0

    def take(size: int) -> int:
        nonlocal position
        position += size
        return position - size

    return Turns(count, take)


def gather_turns[T](results: list[T], turns: Turns, peers: Peers) -> list[T]:
    """Return everybody's results by number; `results` are this process's, by number too."""
    parts = peers.gather(list(zip(sorted(turns.taken), results, strict=True)))
    return [result for _, result in sorted((pair for part in parts for pair in part), key=itemgetter(0))]


def longest_wait(turns: Turns, peers: Peers) -> float:
    """Return for how many seconds the process that was done first has waited for the last one."""
    peers.gather([])  # the last one comes here
    return max(seconds for part in peers.gather([turns.waited()]) for seconds in part)


def tell_wait(what: str, turns: Turns, peers: Peers) -> None:
    """Print how long the processes waited for the one that was done last; alone, nothing."""
    if peers.size > 1:
        seconds = longest_wait(turns, peers)
        if peers.rank == 0:
            print_above(f"{what}: processes waited up to {seconds:.1f} s for the last one")


def share[T](items: Sequence[T], peers: Peers, first: int = 0) -> Sequence[T]:
    """Return this process's share of a sequence whose items are numbered from `first` on."""
    return items[(peers.rank - first) % peers.size :: peers.size]


def gather_shares[T](items: list[T], peers: Peers, first: int = 0) -> list[T]:
    """Return everybody's results in the order of the sequence that `share` split."""
    parts = peers.gather(items)
    total = sum(len(part) for part in parts)
    iterators = [iter(part) for part in parts]
    return [next(iterators[i % peers.size]) for i in range(first, first + total)]


class Portion[T](Iterator[T]):
    """Every `size`-th item of an order without end, which all processes go through together."""

    def __init__(self, items: Iterator[T], rank: int, size: int) -> None:
        self._items, self._rank, self._size = items, rank, size
        self._ahead: list[T] = []  # from the common position on, everybody's
        self._num_taken = 0  # of this process's, from there on

    def __next__(self) -> T:
        """Return this process's next item."""
        index = self._rank + self._size * self._num_taken
        self._num_taken += 1
        self._read(index + 1)
        return self._ahead[index]

    def move_past(self, count: int) -> None:
        """Move the common position past the `count` items that all processes together have taken."""
        self._read(count)
        del self._ahead[:count]
        self._num_taken = 0

    def _read(self, count: int) -> None:
        self._ahead += islice(self._items, max(0, count - len(self._ahead)))

"""The processes that train together: the share of the work of each, and what the others did."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, runtime_checkable


@runtime_checkable
class Peers(Protocol):
    """One process among `size` equal ones. Work item number i is done by process `i % size`."""

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

    def lending(self) -> AbstractContextManager[None]:
        """Let rank 0 read whole what is in parts meanwhile; the others enter to lend, until it leaves."""
        ...

    def gather[T](self, items: list[T]) -> list[list[T]]:
        """Return the lists of all processes by rank, the same on each; every process must call it."""
        ...


class Alone:
    """One process without peers."""

    rank = 0
    size = 1
    is_sharded = False

    def lending(self) -> AbstractContextManager[None]:
        """Return nothing to wait for."""
        return nullcontext()

    def gather[T](self, items: list[T]) -> list[list[T]]:
        """Return the one list."""
        return [items]


ALONE = Alone()


def share[T](items: Sequence[T], peers: Peers, first: int = 0) -> Sequence[T]:
    """Return this process's share of a sequence whose items are numbered from `first` on."""
    return items[(peers.rank - first) % peers.size :: peers.size]


def gather_shares[T](items: list[T], peers: Peers, first: int = 0) -> list[T]:
    """Return everybody's results in the order of the sequence that `share` split."""
    parts = peers.gather(items)
    total = sum(len(part) for part in parts)
    iterators = [iter(part) for part in parts]
    return [next(iterators[i % peers.size]) for i in range(first, first + total)]

"""Work that several processes (ranks) share, whatever they exchange by, and their results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

from hf_farms.errors import HfFarmsError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "ONE_PROCESS",
    "Ranks",
    "WorkingRanks",
    "all_rank_results",
    "assign_to_ranks",
    "check_same",
    "first_rank_result",
    "folder_of_rank",
    "from_first_rank",
    "rows_of_rank",
]

T = TypeVar("T")


class Ranks(Protocol):
    """One process among `count`."""

    index: int
    count: int

    def gather(self, item: T) -> list[T]:
        """Return the items of all ranks, in rank order, on every rank."""


class WorkingRanks(Ranks, Protocol):
    """One process among `count` that make one result together: they also exchange tensors, and fail together."""

    device: str | None

    def sum_(self, tensor: Tensor) -> None:
        """Replace a tensor, in place, by the sum over all ranks, which is the same to the bit on every rank."""

    def concatenate(self, part: Tensor) -> Tensor:
        """Return the parts of all ranks along the first dimension, in rank order, on every rank.

        Parts have any number of rows; dtype and the other dimensions are the same on all ranks.
        """

    def failing_together(self) -> AbstractContextManager[None]:
        """Raise an error that leaves the context on one rank on all of them, at their next exchange.

        An error that leaves the context has left it on every rank: it may be handled, and the work goes on.
        """


class _OneProcess:
    index, count = 0, 1
    device: str | None = None

    def __repr__(self) -> str:
        return "ONE_PROCESS"  # in signatures that `help` shows

    def gather(self, item: T) -> list[T]:
        return [item]

    def sum_(self, tensor: Tensor) -> None:
        pass

    def concatenate(self, part: Tensor) -> Tensor:
        return part

    def failing_together(self) -> AbstractContextManager[None]:
        return nullcontext()


ONE_PROCESS: WorkingRanks = _OneProcess()


def first_rank_result(make: Callable[[], T], ranks: Ranks) -> T:
    """Run a function on all ranks and return the first rank's result on all of them.

    An error on one rank is raised on all, because the others wait for it.
    """
    return all_rank_results(make, ranks)[0]


def all_rank_results(make: Callable[[], T], ranks: Ranks) -> list[T]:
    """Run a function on all ranks and return the results of all ranks on each of them.

    An error on one rank is raised on all, because the others wait for it.
    """
    if ranks.count == 1:
        return [make()]
    result: T | None = None
    failure: Exception | None = None
    try:
        result = make()
    except Exception as error:  # any error, because the other ranks must raise it too
        failure = error
    # Not every error can be pickled.
    sent = failure if failure is None or isinstance(failure, HfFarmsError) else repr(failure)
    outcomes = ranks.gather((result, sent))
    if failure is not None:
        raise failure
    for index, (_, received) in enumerate(outcomes):
        if isinstance(received, HfFarmsError):
            raise received
        if received is not None:
            raise HfFarmsError(f"process {index} of {ranks.count} failed: {received}")
    return [cast(T, item) for item, _ in outcomes]


def from_first_rank(make: Callable[[], T], ranks: WorkingRanks) -> T:
    """Run a function on the first rank alone, and return its result on all of them."""
    return cast(T, ranks.gather(make() if ranks.index == 0 else None)[0])


def check_same(ranks: Ranks, values: Mapping[str, object]) -> None:
    """Reject arguments that differ between processes, which would mix two results; all ranks call it together.

    Raises:
        ValueError: on all of them, with the first argument that differs.
    """
    if ranks.count == 1:
        return
    texts = ranks.gather({name: repr(value) for name, value in values.items()})
    for index, other in enumerate(texts):
        for name in dict.fromkeys([*texts[0], *other]):
            if texts[0].get(name) != other.get(name):
                first, second = (text.get(name, "none")[:200] for text in (texts[0], other))
                raise ValueError(
                    f"{name} must be the same on all processes, got {first} in process 0 and {second} in process "
                    f"{index}. Start all of them with the same arguments."
                )


def rows_of_rank(rows: int, ranks: Ranks) -> slice:
    """Return the rows of this rank, out of so many in all: parts in rank order, of one length but for one row."""
    return slice(rows * ranks.index // ranks.count, rows * (ranks.index + 1) // ranks.count)


def folder_of_rank(folder: Path | None, ranks: Ranks) -> Path | None:
    """Return the part of a folder that this rank writes to: the folder itself for the first one."""
    return folder / f"rank-{ranks.index}" if folder is not None and ranks.index > 0 else folder


def assign_to_ranks(costs: Sequence[float], count: int) -> list[list[int]]:
    """Assign items to ranks so that their costs are balanced: the costliest first, each to the least loaded rank.

    Args:
        costs: of the items, in any unit.
        count: number of ranks.

    Returns:
        For each rank the indices of its items, ascending. Deterministic, so that all ranks agree.
    """
    loads = [0.0] * count
    shares: list[list[int]] = [[] for _ in range(count)]
    for item in sorted(range(len(costs)), key=lambda i: -costs[i]):
        rank = loads.index(min(loads))
        loads[rank] += costs[item]
        shares[rank].append(item)
    return [sorted(share) for share in shares]

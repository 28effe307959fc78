"""Several processes, one report: how work is shared out over ranks and how results come together.

`accelerate launch` or torchrun starts the processes; what they need from each other goes through accelerate.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, cast

from hf_farms.errors import HfFarmsError

__all__ = [
    "ONE_PROCESS",
    "LaunchedRanks",
    "Ranks",
    "agreed",
    "collected",
    "is_main_process",
    "launched_ranks",
    "share_out",
]

T = TypeVar("T")

# What torchrun and accelerate set, Intel MPI, Open MPI.
SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE")
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK")


class Ranks(Protocol):
    """One process among `count`."""

    index: int
    count: int

    def gather(self, item: T) -> list[T]:
        """The items of all ranks, in their order, on every rank."""


class _OneProcess:
    index, count = 0, 1

    def gather(self, item: T) -> list[T]:
        return [item]


ONE_PROCESS: Ranks = _OneProcess()


class LaunchedRanks:
    """The processes that `accelerate launch` (or torchrun) started; needs accelerate.

    Attributes:
        device: the device of this process, such as `cuda:1`.
    """

    def __init__(self) -> None:
        import torch
        from accelerate import PartialState

        state = PartialState(cpu=not torch.cuda.is_available())
        self.index, self.count = state.process_index, state.num_processes
        self.device = str(state.device)

    def gather(self, item: T) -> list[T]:
        """The items of all ranks, in their order, on every rank; items are pickled."""
        from accelerate.utils import gather_object

        return cast(list[T], cast(Any, gather_object)([item]))


def launched_ranks() -> Ranks:
    """The ranks of this process; one process where it was not launched as one of several."""
    return LaunchedRanks() if _from_environment(SIZES, 1) > 1 else ONE_PROCESS


def agreed(make: Callable[[], T], ranks: Ranks) -> T:
    """What the first rank made, on all of them; an error on one is raised on all, because the others wait for it."""
    return collected(make, ranks)[0]


def collected(make: Callable[[], T], ranks: Ranks) -> list[T]:
    """What each rank made, on all of them; an error on one is raised on all, because the others wait for it."""
    if ranks.count == 1:
        return [make()]
    made: T | None = None
    failure: Exception | None = None
    try:
        made = make()
    except Exception as error:  # whatever it is, the others must hear of it
        failure = error
    shown = failure if failure is None or isinstance(failure, HfFarmsError) else repr(failure)
    everything = ranks.gather((made, shown))
    if failure is not None:
        raise failure
    for index, (_, raised) in enumerate(everything):
        if isinstance(raised, HfFarmsError):
            raise raised
        if raised is not None:
            # Not every error can be sent to another process.
            raise HfFarmsError(f"process {index} of {ranks.count} failed: {raised}")
    return [cast(T, item) for item, _ in everything]


def is_main_process() -> bool:
    """Whether this is the first of the launched processes, or the only one."""
    return _from_environment(RANKS, 0) == 0


def _from_environment(names: Sequence[str], default: int) -> int:
    return next((int(os.environ[name]) for name in names if name in os.environ), default)


def share_out(costs: Sequence[float], count: int) -> list[list[int]]:
    """Indices of the items for each of `count` ranks: the costliest first, each to the rank with least to do.

    Deterministic, so that all ranks come to the same result; within a rank the indices are ascending.
    """
    loads = [0.0] * count
    shares: list[list[int]] = [[] for _ in range(count)]
    for item in sorted(range(len(costs)), key=lambda i: -costs[i]):
        rank = loads.index(min(loads))
        loads[rank] += costs[item]
        shares[rank].append(item)
    return [sorted(share) for share in shares]

"""Distribute work over several processes (ranks) and gather their results.

`accelerate launch` or torchrun starts the processes; they communicate through accelerate.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from hf_farms.errors import HfFarmsError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "ONE_PROCESS",
    "LaunchedRanks",
    "Ranks",
    "WorkingRanks",
    "all_rank_results",
    "assign_to_ranks",
    "check_same",
    "first_rank_result",
    "folder_of_rank",
    "from_first_rank",
    "hidden_launch",
    "is_main_process",
    "launched_processes",
    "launched_ranks",
    "local_process_count",
    "rows_of_rank",
]

T = TypeVar("T")

# Set by torchrun and accelerate, by Intel MPI, and by Open MPI.
WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE")
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK")
LOCAL_WORLD_SIZES = ("LOCAL_WORLD_SIZE", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE")
LOCAL_RANKS = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK")
# Engines that accelerate sets up for all processes.
ENGINES = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_MEGATRON_LM")


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

    def gather(self, item: T) -> list[T]:
        return [item]

    def sum_(self, tensor: Tensor) -> None:
        pass

    def concatenate(self, part: Tensor) -> Tensor:
        return part

    def failing_together(self) -> AbstractContextManager[None]:
        return nullcontext()


ONE_PROCESS: WorkingRanks = _OneProcess()


class LaunchedRanks:
    """The current process among those that `accelerate launch` or torchrun started; needs accelerate.

    Attributes:
        device: the device of this process, such as `cuda:1`.

    Raises:
        HfFarmsError: the processes do not reach each other.
    """

    def __init__(self) -> None:
        import torch
        from accelerate import PartialState

        try:
            state = PartialState(cpu=not torch.cuda.is_available())
        except (ValueError, RuntimeError) as error:
            raise HfFarmsError(
                f"processes must be able to reach each other, got variables of several processes, and: {error}",
                hint="Start the command with accelerate launch or torchrun, or unset WORLD_SIZE.",
            ) from error
        self.index, self.count = state.process_index, state.num_processes
        self.device = str(state.device)

    def gather(self, item: T) -> list[T]:
        """Return the items of all ranks, in rank order, on every rank; items are pickled."""
        from accelerate.utils import gather_object

        return cast(list[T], cast(Any, gather_object)([item]))


def launched_ranks() -> Ranks:
    """Return the ranks that this process belongs to; `ONE_PROCESS` if it was not launched as one of several."""
    return LaunchedRanks() if launched_processes() > 1 else ONE_PROCESS


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


def is_main_process() -> bool:
    """Return whether this is the first of the launched processes, or the only one."""
    return _from_environment(RANKS, 0) == 0


@contextmanager
def hidden_launch() -> Iterator[None]:
    """Hide from libraries, in the context, that this process is one of several: a Trainer would wait for the others."""
    names = (*WORLD_SIZES, *RANKS, *LOCAL_WORLD_SIZES, *LOCAL_RANKS, *ENGINES)
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    _forget_launch()
    try:
        yield
    finally:
        os.environ.update(hidden)
        _forget_launch()


def _forget_launch() -> None:
    """Have accelerate read the environment again when it is asked next."""
    if (state := sys.modules.get("accelerate.state")) is not None:
        state.AcceleratorState._reset_state(reset_partial_state=True)


def launched_processes() -> int:
    """Return the number of launched processes, on all machines."""
    return _from_environment(WORLD_SIZES, 1)


def local_process_count() -> int:
    """Return the number of launched processes on this machine."""
    return _from_environment(LOCAL_WORLD_SIZES, 1)


def _from_environment(names: Sequence[str], default: int) -> int:
    # Launchers set numbers; anything else was set for something else.
    return next((int(value) for name in names if (value := os.environ.get(name, "")).isdecimal()), default)


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

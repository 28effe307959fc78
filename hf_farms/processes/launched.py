"""The processes that `accelerate launch` or torchrun has started; they exchange through accelerate."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from hf_farms.errors import HfFarmsError
from hf_farms.processes.ranks import ONE_PROCESS, Ranks

__all__ = [
    "LaunchedRanks",
    "hidden_launch",
    "is_main_process",
    "launched_processes",
    "launched_ranks",
    "local_process_count",
]

T = TypeVar("T")

# Set by torchrun and accelerate, by Intel MPI, and by Open MPI.
WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE")
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK")
LOCAL_WORLD_SIZES = ("LOCAL_WORLD_SIZE", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE")
LOCAL_RANKS = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK")
# Engines that accelerate sets up for all processes.
ENGINES = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_MEGATRON_LM")


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

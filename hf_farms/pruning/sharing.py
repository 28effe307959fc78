"""Blocks that several processes prune together: which are finished, and weights that one process alone pruned."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeVar

from hf_farms.blocks import BlockSource
from hf_farms.blocks.protocols import Record
from hf_farms.errors import HfFarmsError, HfFarmsWarning
from hf_farms.processes import WorkingRanks, from_first_rank, hidden_launch

__all__ = ["alone", "commit", "finished_blocks", "receive_blocks"]

T = TypeVar("T")


def finished_blocks(source: BlockSource, ranks: WorkingRanks) -> list[Record | None]:
    """Return the records of the blocks that an earlier run finished; None for the others.

    Raises:
        HfFarmsError: processes have other blocks than the first one.
    """
    own = [source.finished(index) for index in range(len(source))]
    blocks = [[record is not None for record in records] for records in ranks.gather(own)]
    for index, finished in enumerate(blocks):
        if finished != blocks[0]:
            raise HfFarmsError(
                f"finished blocks must be readable by all processes, got {sum(finished)} in process {index} and "
                f"{sum(blocks[0])} in process 0.",
                hint="Choose an output on a disk that all machines share.",
            )
    return own


def commit(source: BlockSource, index: int, record: Record, ranks: WorkingRanks) -> None:
    """Mark a block as finished: the first process writes, and the others wait until it has done so."""
    from_first_rank(lambda: source.commit(index, record), ranks)


def alone(stage: str, work: Callable[[], T], ranks: WorkingRanks) -> T:
    """Run a stage that cannot be shared on the first process, and return its result on all; warn that they wait."""
    if ranks.count == 1:
        return work()
    warnings.warn(
        f"{stage} is done by one process, as its steps depend on each other: the others wait.",
        HfFarmsWarning,
        stacklevel=4,
    )
    with hidden_launch() if ranks.index == 0 else nullcontext():
        return from_first_rank(work, ranks)


def receive_blocks(source: BlockSource, ranks: WorkingRanks, *, from_memory: bool) -> None:
    """Give all processes the blocks that the first one pruned.

    Args:
        source: the blocks.
        ranks: the processes.
        from_memory: send the weights, also if the source has results: these are older.

    Raises:
        HfFarmsError: the results of the first process cannot be read by another one.
    """
    results: Any = getattr(source, "results", None)
    attach: Any = getattr(source, "attach", None)
    if results is not None and attach is not None and not from_memory:
        # Also drops blocks of a streamed source that were read before.
        if ranks.index > 0:
            attach(results)
        finished_blocks(source, ranks)
        return
    for index in range(len(source)):
        for parameter in source.open(index).module.parameters():
            own = parameter.data.reshape(-1)
            received = ranks.concatenate(own if ranks.index == 0 else own[:0])
            if ranks.index > 0:
                parameter.data.copy_(received.view_as(parameter))

"""Work on batches beside each other on the cores of the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["CPU_BYTES", "on_cores", "share"]

# Bytes of windows and Gram matrices held at once, by all workers together.
CPU_BYTES = 256 * 2**20

Batch = TypeVar("Batch")


def share(count: int, fitting: int) -> int:
    """Return the number of windows of a batch: as many as fit into memory together, and work for every core."""
    workers = min(torch.get_num_threads(), count)
    return max(1, min(fitting // workers, -(-count // workers)))


def on_cores(solve: Callable[[Batch], Tensor], batches: Sequence[Batch]) -> list[Tensor]:
    """Solve batches beside each other, each on one thread if there are enough batches."""
    threads = torch.get_num_threads()
    workers = min(threads, len(batches))
    if workers == 1:
        return [solve(batch) for batch in batches]
    # New threads do not inherit `set_num_threads` of the main thread.
    with (
        _torch_threads(threads // workers),
        ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(max(1, threads // workers),)) as pool,
    ):
        return list(pool.map(solve, batches))


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """Set torch's thread count within the context: one thread per eigenproblem is fastest."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, count))
    try:
        yield
    finally:
        torch.set_num_threads(before)

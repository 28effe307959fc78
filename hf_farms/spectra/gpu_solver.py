"""Eigenvalues of Gram matrices that a GPU computed: solved there or on the cores of the CPU, whichever is faster.

Older versions of torch solve the matrices of a batch one after another on CUDA
(https://github.com/pytorch/pytorch/issues/175585); newer ones call a batched solver.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

from hf_farms.spectra.cores import CPU_BYTES, on_cores, share

__all__ = ["MAX_BATCH", "solve_copies", "solve_from_gpu", "solve_halving"]

# Up to this size a serial solver of a GPU takes as long for one matrix as one core does, or longer.
CORES_UP_TO = 512
# Matrices of a batch: grids of CUDA end at 65,535.
MAX_BATCH = 65_534
# The probe: a batch of so many matrices of so many rows takes less than half of the time of them one after another
# where the solver is batched, and all of it where it is serial.
PROBE_COUNT, PROBE_ROWS = 16, 128

Item = TypeVar("Item")


def solve_halving(items: Sequence[Item], solve: Callable[[Sequence[Item]], Tensor], size: int) -> list[Tensor]:
    """Solve items in batches, halved whenever the memory of the GPU does not suffice.

    Args:
        items: to solve, in order.
        solve: returns a row for each item of a batch.
        size: of the first batch; at most `MAX_BATCH` are taken.

    Returns:
        The results of the batches, in order.

    Raises:
        torch.OutOfMemoryError: one item does not fit.
    """
    solved: list[Tensor] = []
    start, size = 0, max(1, min(size, MAX_BATCH))
    while start < len(items):
        try:
            solved.append(solve(items[start : start + size]))
        except torch.OutOfMemoryError:
            size = min(size, len(items) - start)
            if size == 1:
                raise
        else:
            start += size
            continue
        # Outside of the handler, whose traceback holds the tensors of the failed batch.
        size = -(-size // 2)
        torch.cuda.empty_cache()
    return solved


def solve_from_gpu(gram: Tensor) -> Tensor:
    """Compute eigenvalues of Gram matrices on a GPU, on its cores or those of the CPU.

    Args:
        gram: `(w, k, k)`.

    Returns:
        `(w, k)`, ascending, on the GPU.
    """
    if gram.shape[-1] > CORES_UP_TO or has_batched_solver(gram.device):
        eigenvalues: Tensor = torch.linalg.eigvalsh(gram)
        return eigenvalues
    # The threads copy on another stream than the one that computes the matrices.
    torch.cuda.current_stream(gram.device).synchronize()
    return solve_copies(gram)


def solve_copies(gram: Tensor) -> Tensor:
    """Compute eigenvalues of Gram matrices `(w, k, k)` on the cores of the CPU; `(w, k)` on their device."""
    size = share(len(gram), CPU_BYTES // (2 * gram[0].nbytes))
    return torch.cat(on_cores(lambda part: torch.linalg.eigvalsh(part.cpu()), gram.split(size))).to(gram.device)


@cache
def has_batched_solver(device: torch.device) -> bool:
    """Return whether a GPU solves the matrices of a batch together, measured once for each device in under a second."""
    return is_batched(device, lambda: torch.cuda.synchronize(device))


def is_batched(device: torch.device, synchronize: Callable[[], None]) -> bool:
    """Return whether a batch takes less than half of the time of its matrices one after another.

    Args:
        device: of the solver.
        synchronize: waits for the device.
    """
    source = torch.Generator().manual_seed(0)
    x = torch.randn((PROBE_COUNT, PROBE_ROWS, 2 * PROBE_ROWS), generator=source).to(device)
    gram = x @ x.mT

    def seconds(matrices: Tensor) -> float:
        torch.linalg.eigvalsh(matrices)  # creates handles and workspaces
        times = []
        for _ in range(3):
            synchronize()
            start = time.perf_counter()
            torch.linalg.eigvalsh(matrices)
            synchronize()
            times.append(time.perf_counter() - start)
        return min(times)

    return seconds(gram) < 0.5 * PROBE_COUNT * seconds(gram[:1])

"""Windows -> eigenvalues: the empirical spectral density (ESD).

Shapes: w windows of r x c, k = min(r, c) eigenvalues each.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["window_eigenvalues"]

# Bytes of float64 Gram matrices held at once by all workers together.
GRAM_BYTES = 256 * 2**20


def window_eigenvalues(windows: Tensor) -> Tensor:
    """Squared singular values of every window.

    `eigvalsh` of the smaller Gram matrix, always in float64: a float32 Gram loses the small eigenvalues, and with
    them the `peak` fit (by up to 52%). On a CPU the windows are shared out over the cores, each worker with its share
    of the threads; elsewhere the solver is batched. Cost grows as w r c k for the products and w k^3 for the solver,
    memory stays within a fixed number of Gram matrices.

    Args:
        windows: `(..., r, c)`, any float dtype, any strides; not modified.

    Returns:
        `(w, k)` float64 on the windows' device (on the CPU where the device has no float64), ascending in each row,
        never negative.
    """
    if windows.device.type == "mps":
        windows = windows.cpu()
    *lead, r, c = windows.shape
    flat_index = list(torch.cartesian_prod(*(torch.arange(n) for n in lead)).reshape(-1, len(lead)).tolist())
    k = min(r, c)
    per_batch = max(1, GRAM_BYTES // (8 * (k * k + r * c)))
    if windows.device.type != "cpu":
        batches = [flat_index[i : i + per_batch] for i in range(0, len(flat_index), per_batch)]
        return torch.cat([_eigenvalues(windows, batch) for batch in batches])
    threads = torch.get_num_threads()
    workers = min(threads, len(flat_index))
    per_worker = max(1, min(per_batch // workers, -(-len(flat_index) // workers)))
    batches = [flat_index[i : i + per_worker] for i in range(0, len(flat_index), per_worker)]
    with _torch_threads(threads // workers), ThreadPoolExecutor(workers) as pool:
        return torch.cat(list(pool.map(lambda batch: _eigenvalues(windows, batch), batches)))


def _eigenvalues(windows: Tensor, batch: list[list[int]]) -> Tensor:
    """Eigenvalues of some windows, gathered by index because a strided view of overlaps cannot be reshaped."""
    x = torch.stack([windows[tuple(index)] for index in batch]).double()
    gram = x @ x.mT if x.shape[-2] <= x.shape[-1] else x.mT @ x
    eigenvalues: Tensor = torch.linalg.eigvalsh(gram)
    return eigenvalues.clamp_min_(0.0)


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """Threads for one solver; small eigenproblems run faster side by side than on several threads each."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, count))
    try:
        yield
    finally:
        torch.set_num_threads(before)

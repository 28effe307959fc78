"""Windows -> eigenvalues: the empirical spectral density (ESD).

Shapes: w windows of r x c, k = min(r, c) eigenvalues each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import product

import torch
from torch import Tensor

__all__ = ["window_eigenvalues", "windows_eigenvalues"]

# Bytes of windows and Gram matrices held at once on a CPU, by all workers together; elsewhere a share of free memory.
CPU_BYTES = 256 * 2**20
GPU_SHARE = 0.25
# Float32 serves where lambda_max is at most this many times the median. Measured on Gaussian, Student-t and
# geometrically decaying spectra of 1024 and 2000 rows, the relative error of a `mid` alpha is then below 1e-5.
FLOAT32_RANGE = 1e5
# This share of eigenvalues may come out negative by rounding; more mean a rank that float32 cannot see.
FLOAT32_NEGATIVE = 0.002
# Smaller windows are solved in float64, where it costs next to nothing.
FLOAT32_FROM = 64
# From this size only the lower triangle of a Gram matrix is computed, in strips.
STRIPS_FROM, STRIPS = 512, 4

# A window: the tensor that holds it, its index there, and which list of results it belongs to.
Window = tuple[Tensor, tuple[int, ...]]


def window_eigenvalues(windows: Tensor, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """Squared singular values of every window of one weight; see `windows_eigenvalues`.

    Args:
        windows: `(..., r, c)`.
        dtype: of the solver.

    Returns:
        `(w, k)` float64, ascending in each row.
    """
    return windows_eigenvalues([windows], dtype=dtype)[0]


def windows_eigenvalues(groups: Sequence[Tensor], *, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Squared singular values of every window of several weights, in one go.

    `eigvalsh` of the smaller Gram matrix. On a CPU the windows are shared out over the cores, one thread for each
    where there are enough; elsewhere torch's solver gets batches, as many windows as fit into a quarter of the free
    memory.
    Cost grows as w r c k for the products and w k^3 for the solver; memory does not grow with w.

    Args:
        groups: `(..., r, c)` each, r and c the same in all, any float or complex dtype, any strides; not modified.
        dtype: float64, or float32: 1.5 to 2.5 times faster and enough for the upper half of a spectrum. A window that
            float32 cannot resolve is solved again in float64.

    Returns:
        For each group `(w, k)` float64 on its device (on the CPU where the device has no solver), ascending in each
        row; what is zero up to rounding is exactly 0.
    """
    groups = [group.cpu() if group.device.type == "mps" else group for group in groups]
    windows: list[Window] = [
        (group, index) for group in groups for index in product(*(range(size) for size in group.shape[:-2]))
    ]
    counts = [group.shape[:-2].numel() for group in groups]
    if groups[0].device.type == "cpu":
        solved = _on_cores(windows, dtype)
    else:
        size = _batch_size(windows[0], dtype)
        solved = [_eigenvalues(windows[i : i + size], dtype) for i in range(0, len(windows), size)]
    return list(torch.cat(solved).split(counts))


def _on_cores(windows: list[Window], dtype: torch.dtype) -> list[Tensor]:
    threads = torch.get_num_threads()
    workers = min(threads, len(windows))
    share = -(-len(windows) // workers)
    size = max(1, min(_batch_size(windows[0], dtype) // workers, share))
    batches = [windows[i : i + size] for i in range(0, len(windows), size)]
    if workers == 1:
        return [_eigenvalues(batch, dtype) for batch in batches]
    # A new thread starts with all the threads of the process, whatever the main thread was told.
    with (
        _torch_threads(threads // workers),
        ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(max(1, threads // workers),)) as pool,
    ):
        return list(pool.map(lambda batch: _eigenvalues(batch, dtype), batches))


def _batch_size(window: Window, dtype: torch.dtype) -> int:
    """How many windows are solved at once."""
    tensor, _ = window
    r, c = tensor.shape[-2:]
    free = CPU_BYTES
    if tensor.device.type == "cuda":
        free = int(GPU_SHARE * torch.cuda.mem_get_info(tensor.device)[0])
    # The window, its Gram matrix, the copy that the solver works on, and its workspace.
    return max(1, free // (dtype.itemsize * (1 + tensor.is_complex()) * (r * c + 3 * min(r, c) ** 2)))


def _eigenvalues(batch: list[Window], dtype: torch.dtype = torch.float64) -> Tensor:
    """Eigenvalues of some windows, gathered by index because a strided view of overlaps cannot be reshaped."""
    x = torch.stack([tensor[index] for tensor, index in batch])
    k = min(x.shape[-2:])
    if k < FLOAT32_FROM or x.dtype.itemsize > dtype.itemsize * (1 + x.is_complex()):
        dtype = torch.float64
    eigenvalues = _solve(x, dtype)
    zero = k * torch.finfo(torch.float64).eps
    if dtype == torch.float64:
        return eigenvalues.masked_fill_(eigenvalues <= zero * eigenvalues[:, -1:], 0.0)
    lost = _unresolved(eigenvalues)
    # What float32 resolves has no zeros: a negative eigenvalue is a small one.
    eigenvalues = torch.maximum(eigenvalues, zero * eigenvalues[:, -1:])
    if lost.any():
        eigenvalues[lost] = _eigenvalues([window for window, bad in zip(batch, lost.tolist(), strict=True) if bad])
    return eigenvalues


def _solve(x: Tensor, dtype: torch.dtype) -> Tensor:
    x = x.to(dtype.to_complex() if x.is_complex() else dtype)
    x = x if x.shape[-2] <= x.shape[-1] else x.mT
    eigenvalues: Tensor = torch.linalg.eigvalsh(_lower_gram(x))
    return eigenvalues.double()


def _lower_gram(x: Tensor) -> Tensor:
    """X X^H, at least its lower triangle, which is all that the solver reads; `(w, k, c)` -> `(w, k, k)`."""
    k = x.shape[-2]
    if k < STRIPS_FROM:
        return x @ x.mH
    gram = x.new_zeros((len(x), k, k))
    ends = [k * (strip + 1) // STRIPS for strip in range(STRIPS)]
    for start, end in zip([0, *ends], ends, strict=False):
        torch.matmul(x[:, start:end], x[:, :end].mH, out=gram[:, start:end, :end])
    return gram


def _unresolved(eigenvalues: Tensor) -> Tensor:
    """Spectra whose upper half float32 does not determine: too wide, or of lower rank."""
    k = eigenvalues.shape[-1]
    wide = eigenvalues[:, -1] > FLOAT32_RANGE * eigenvalues[:, k // 2]
    return wide | ((eigenvalues <= 0).sum(dim=-1) > FLOAT32_NEGATIVE * k)


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """Threads for one solver; eigenproblems run faster side by side than on several threads each."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, count))
    try:
        yield
    finally:
        torch.set_num_threads(before)

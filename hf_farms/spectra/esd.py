"""Compute the eigenvalues of windows: the empirical spectral density (ESD).

Shapes: w windows of r x c, k = min(r, c) eigenvalues each.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from hf_farms.spectra.cores import CPU_BYTES, on_cores, share
from hf_farms.spectra.gpu_solver import solve_from_gpu, solve_halving

__all__ = ["window_eigenvalues", "windows_eigenvalues"]

# Share of the free memory of a GPU for windows and Gram matrices.
GPU_SHARE = 0.25
# Float32 is accurate enough if lambda_max is at most this many times the median: measured on Gaussian, Student-t and
# geometrically decaying spectra of 1024 and 2000 rows, the relative error of a `mid` alpha is below 1e-5.
FLOAT32_RANGE = 1e5
# Rounding makes at most this share of eigenvalues negative; more indicate low rank that float32 cannot resolve.
FLOAT32_NEGATIVE = 0.002
# Smaller windows are solved in float64, at almost no extra cost.
FLOAT32_FROM = 64
# From this size only the lower triangle of a Gram matrix is computed, in strips.
STRIPS_FROM, STRIPS = 512, 4
# A window: tensor of windows, and index of the window in it.
Window = tuple[Tensor, tuple[int, ...]]


def window_eigenvalues(windows: Tensor, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """Compute the squared singular values of every window of one weight; see `windows_eigenvalues`.

    Args:
        windows: `(..., r, c)`.
        dtype: dtype of the solver.

    Returns:
        `(w, k)` float64, ascending in each row.
    """
    return windows_eigenvalues([windows], dtype=dtype)[0]


def windows_eigenvalues(groups: Sequence[Tensor], *, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Compute the squared singular values of every window of several weights together.

    Uses `eigvalsh` of the smaller Gram matrix. On a CPU the windows are distributed over the cores, one thread per
    window if there are enough windows. A GPU computes the Gram matrices, in batches that fit into a quarter of its free
    memory, halved where that does not suffice. Where its solver takes the matrices of a batch one after another (see
    `gpu_solver`), those of up to 512 rows are solved on the cores of the CPU, which is many times faster.
    Cost grows as w r c k for the products and w k^3 for the solver; memory does not grow with w.

    Args:
        groups: `(..., r, c)` each, with common r and c, any float or complex dtype, any strides; not modified.
        dtype: float64, or float32, which is 1.5 to 2.5 times faster and accurate enough for the upper half of a
            spectrum. A window that float32 cannot resolve is solved again in float64.

    Returns:
        `(w, k)` float64 for each group, on its device (on the CPU for devices without a solver), ascending in each
        row. Eigenvalues that are zero up to rounding are exactly 0.
    """
    groups = [group.cpu() if group.device.type == "mps" else group for group in groups]
    windows: list[Window] = [
        (group, index) for group in groups for index in product(*(range(size) for size in group.shape[:-2]))
    ]
    counts = [group.shape[:-2].numel() for group in groups]
    if groups[0].device.type == "cpu":
        solved = _solveon_cores(windows, dtype)
    else:
        size = _batch_size(windows[0], dtype)
        solved = solve_halving(windows, lambda batch: _eigenvalues(batch, dtype), size)
    return list(torch.cat(solved).split(counts))


def _solveon_cores(windows: list[Window], dtype: torch.dtype) -> list[Tensor]:
    size = share(len(windows), _batch_size(windows[0], dtype))
    batches = [windows[i : i + size] for i in range(0, len(windows), size)]
    return on_cores(lambda batch: _eigenvalues(batch, dtype), batches)


def _batch_size(window: Window, dtype: torch.dtype) -> int:
    """Return the number of windows to solve at once."""
    tensor, _ = window
    r, c = tensor.shape[-2:]
    free = CPU_BYTES
    if tensor.device.type == "cuda":
        free = int(GPU_SHARE * torch.cuda.mem_get_info(tensor.device)[0])
    # The window, its Gram matrix, the copy of the solver, and its workspace.
    return max(1, free // (dtype.itemsize * (1 + tensor.is_complex()) * (r * c + 3 * min(r, c) ** 2)))


def _eigenvalues(batch: Sequence[Window], dtype: torch.dtype = torch.float64) -> Tensor:
    """Compute eigenvalues of a batch of windows. They are stacked by index: overlapping views cannot be reshaped."""
    x = torch.stack([tensor[index] for tensor, index in batch])
    k = min(x.shape[-2:])
    if k < FLOAT32_FROM or x.dtype.itemsize > dtype.itemsize * (1 + x.is_complex()):
        dtype = torch.float64
    eigenvalues = _solve(x, dtype)
    zero = k * torch.finfo(torch.float64).eps
    if dtype == torch.float64:
        return eigenvalues.masked_fill_(eigenvalues <= zero * eigenvalues[:, -1:], 0.0)
    unresolved = _unresolved(eigenvalues)
    # A window that float32 resolves has full rank: negative eigenvalues are small positive ones.
    eigenvalues = torch.maximum(eigenvalues, zero * eigenvalues[:, -1:])
    if unresolved.any():
        eigenvalues[unresolved] = _eigenvalues(
            [window for window, flag in zip(batch, unresolved.tolist(), strict=True) if flag]
        )
    return eigenvalues


def _solve(x: Tensor, dtype: torch.dtype) -> Tensor:
    x = x.to(dtype.to_complex() if x.is_complex() else dtype)
    x = x if x.shape[-2] <= x.shape[-1] else x.mT
    gram = _lower_gram(x)
    eigenvalues: Tensor = solve_from_gpu(gram) if gram.is_cuda else torch.linalg.eigvalsh(gram)
    return eigenvalues.double()


def _lower_gram(x: Tensor) -> Tensor:
    """Compute the lower triangle (at least) of X X^H, all that the solver reads; `(w, k, c)` -> `(w, k, k)`."""
    k = x.shape[-2]
    if k < STRIPS_FROM:
        return x @ x.mH
    gram = x.new_zeros((len(x), k, k))
    ends = [k * (strip + 1) // STRIPS for strip in range(STRIPS)]
    for start, end in zip([0, *ends], ends, strict=False):
        torch.matmul(x[:, start:end], x[:, :end].mH, out=gram[:, start:end, :end])
    return gram


def _unresolved(eigenvalues: Tensor) -> Tensor:
    """Mark spectra that float32 does not resolve in the upper half: too wide, or rank-deficient."""
    k = eigenvalues.shape[-1]
    wide = eigenvalues[:, -1] > FLOAT32_RANGE * eigenvalues[:, k // 2]
    return wide | ((eigenvalues <= 0).sum(dim=-1) > FLOAT32_NEGATIVE * k)

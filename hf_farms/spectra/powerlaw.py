"""Eigenvalues -> PL_Alpha_Hill and its KS distance.

Shapes: b spectra of N ascending eigenvalues, i the index at which a tail starts, n = N - i.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hf_farms.config import FarmsConfig

__all__ = ["fit_tail", "nonzero_counts"]

HISTOGRAM_BINS = 100
# Entries of the candidates x eigenvalues table that the KS search holds at once.
KS_TABLE = 2**22


def nonzero_counts(eigenvalues: Tensor) -> Tensor:
    """How many eigenvalues of each spectrum are not zero up to rounding: above N eps lambda_max.

    Args:
        eigenvalues: `(b, N)` ascending.

    Returns:
        `(b,)` int64.
    """
    eps = torch.finfo(eigenvalues.dtype).eps * eigenvalues.shape[-1]
    return (eigenvalues > eps * eigenvalues[:, -1:]).sum(dim=-1)


def fit_tail(eigenvalues: Tensor, config: FarmsConfig) -> tuple[Tensor, Tensor]:
    """Fit the tail of each spectrum: alpha = 1 + n / sum_{j >= i} ln(lambda_j / lambda_i).

    PL_Alpha_Hill, TempBalance (NeurIPS 2023) and FARMS (arXiv 2506.06280), with the tail start of `config.fit`.
    Zero eigenvalues are left out. `mid` costs O(N); `peak` and `goodness_of_fit` cost O(N) per candidate.

    Args:
        eigenvalues: `(b, N)` ascending, not negative.
        config: `fit`, `tail_divisor` and `released_peak_bound`.

    Returns:
        alpha and KS distance, each `(b,)`; NaN where the tail has no two different eigenvalues.
    """
    zeros = eigenvalues.shape[-1] - nonzero_counts(eigenvalues)
    if config.fit == "mid":
        return _fit_mid(eigenvalues, zeros, config.tail_divisor)
    fits = [_fit_by_ks(row[z:], config) for row, z in zip(eigenvalues, zeros.tolist(), strict=True)]
    alpha, distance = zip(*fits, strict=True)
    return torch.stack(alpha), torch.stack(distance)


def _fit_mid(lam: Tensor, zeros: Tensor, divisor: float) -> tuple[Tensor, Tensor]:
    size = lam.shape[-1]
    start = (zeros + ((size - zeros).double() / divisor).long()).clamp_max(size - 1)
    index = torch.arange(size, device=lam.device)
    in_tail = index >= start[:, None]
    ratio = torch.where(in_tail, lam / lam.gather(1, start[:, None]), 1.0)
    n = (size - start).to(lam.dtype)
    alpha = 1 + n / ratio.log().sum(dim=-1)
    alpha = torch.where(torch.isfinite(alpha), alpha, torch.nan)
    empirical = (index - start[:, None]) / n[:, None]
    distance = (1 - ratio ** (1 - alpha[:, None]) - empirical).abs()
    return alpha, torch.where(in_tail, distance, 0.0).amax(dim=-1)


def _fit_by_ks(lam: Tensor, config: FarmsConfig) -> tuple[Tensor, Tensor]:
    """The candidate tail start with the smallest KS distance, for one spectrum without zeros."""
    size = len(lam)
    candidates = _candidates(lam, config)
    log = lam.log()
    tail_sum = log.flip(0).cumsum(0).flip(0)
    n = size - torch.arange(size, device=lam.device, dtype=lam.dtype)
    alphas = 1 + n / (tail_sum - n * log)
    # The last eigenvalue alone, and a tail of equal ones, have no alpha.
    candidates = candidates[torch.isfinite(alphas[candidates]) & (alphas[candidates] > 1)]
    if not len(candidates):
        return lam.new_tensor(torch.nan), lam.new_tensor(torch.nan)
    index = torch.arange(size, device=lam.device)
    best = []
    for part in candidates.split(max(1, KS_TABLE // size)):
        offset = index - part[:, None]
        model = 1 - torch.exp((1 - alphas[part, None]) * (log - log[part, None]))
        distance = (model - offset / n[part, None]).abs()
        best.append(torch.where(offset >= 0, distance, 0.0).amax(dim=-1))
    distances = torch.cat(best)
    winner = distances.argmin()
    return alphas[candidates[winner]], distances[winner]


def _candidates(lam: Tensor, config: FarmsConfig) -> Tensor:
    """Indices at which a tail may start, ascending; the last eigenvalue is no tail."""
    if config.fit == "goodness_of_fit" or not len(lam):
        return torch.arange(max(0, len(lam) - 1), device=lam.device)
    log10 = lam.log10()
    low, high = log10[0], log10[-1]
    counts = torch.histc(log10, HISTOGRAM_BINS, min=low.item(), max=high.item())
    x = 10 ** (low + (high - low) * counts.argmax() / HISTOGRAM_BINS)
    # The released code compares log10 of the lower bound with the eigenvalue itself.
    lower = torch.log10(0.95 * x) if config.released_peak_bound else 0.95 * x
    keep = (lam >= lower) & (lam <= 1.5 * x)
    return keep[:-1].nonzero().squeeze(1)

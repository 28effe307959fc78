"""Fit power laws to the tails of spectra: PL_Alpha_Hill and its KS distance. The entries of `FITS` name its functions.

Shapes: b spectra of N ascending eigenvalues, i first index of a tail, n = N - i.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor

from hf_farms.config import FarmsConfig
from hf_farms.registries import FITS

__all__ = ["TailFit", "fit_goodness", "fit_mid", "fit_peak", "fit_tail"]

# Of one spectrum without zeros: the indices at which a tail may start, ascending.
Candidates = Callable[[Tensor, FarmsConfig], Tensor]

HISTOGRAM_BINS = 100
# Entries of a candidates x eigenvalues table that the KS search holds at once.
KS_TABLE = 2**20
# Positions in its tail at which every candidate is evaluated first.
KS_PROBES = 16
# Candidates evaluated on their whole tails in every round.
KS_LEADERS = 8


class TailFit(NamedTuple):
    """Fits of b spectra, each `(b,)`; NaN if the tail has no two distinct eigenvalues.

    Attributes:
        alpha: exponent of the power law.
        distance: KS distance between tail and power law.
        tail_min: smallest eigenvalue of the tail.
    """

    alpha: Tensor
    distance: Tensor
    tail_min: Tensor


def fit_tail(eigenvalues: Tensor, config: FarmsConfig) -> TailFit:
    """Fit the tail of each spectrum: alpha = 1 + n / sum_{j >= i} ln(lambda_j / lambda_i).

    PL_Alpha_Hill, TempBalance (NeurIPS 2023) and FARMS (arXiv 2506.06280), with the tail start of `config.fit`.
    Zero eigenvalues are ignored. `mid` costs O(N). `peak` and `goodness_of_fit` have up to N candidates of O(N) each,
    most of which are excluded after a few dozen positions of their tail.

    Args:
        eigenvalues: `(b, N)` ascending, not negative.
        config: `fit`, `tail_divisor` and `released_peak_bound`.
    """
    return cast("TailFit", FITS[config.fit].load()(eigenvalues, config))


def fit_mid(lam: Tensor, config: FarmsConfig) -> TailFit:
    """Start the tail at index int(N / tail_divisor) of the eigenvalues that are not 0."""
    zeros, size = (lam <= 0).sum(dim=-1), lam.shape[-1]
    start = (zeros + ((size - zeros).double() / config.tail_divisor).long()).clamp_max(size - 1)[:, None]
    index = torch.arange(size, device=lam.device)
    in_tail = index >= start
    tail_min = lam.gather(1, start)
    ratio = torch.where(in_tail, lam / tail_min, 1.0)
    n = (size - start).to(lam.dtype)
    alpha = 1 + n / ratio.log().sum(dim=-1, keepdim=True)
    alpha = torch.where(torch.isfinite(alpha), alpha, torch.nan)
    distance = (1 - ratio ** (1 - alpha) - (index - start) / n).abs()
    return TailFit(alpha[:, 0], torch.where(in_tail, distance, 0.0).amax(dim=-1), tail_min[:, 0])


def fit_peak(eigenvalues: Tensor, config: FarmsConfig) -> TailFit:
    """Start the tail by KS distance, near the fullest bin of the histogram of log10 eigenvalues."""
    return _fit_each(eigenvalues, config, _near_peak)


def fit_goodness(eigenvalues: Tensor, config: FarmsConfig) -> TailFit:
    """Start the tail by KS distance among all eigenvalues."""
    return _fit_each(eigenvalues, config, _all_but_last)


def _fit_each(eigenvalues: Tensor, config: FarmsConfig, candidates: Candidates) -> TailFit:
    zeros = (eigenvalues <= 0).sum(dim=-1)
    fits = [_fit_by_ks(row[z:], config, candidates) for row, z in zip(eigenvalues, zeros.tolist(), strict=True)]
    return TailFit(*(torch.stack(values) for values in zip(*fits, strict=True)))


class _Tails:
    """All tails of one spectrum without zeros: alpha of every start, KS distances on demand."""

    def __init__(self, lam: Tensor) -> None:
        self.log = lam.log()
        self.size = len(lam)
        self.n = self.size - torch.arange(self.size, device=lam.device, dtype=lam.dtype)
        self.alphas = 1 + self.n / (self.log.flip(0).cumsum(0).flip(0) - self.n * self.log)

    def deviations(self, starts: Tensor, places: Tensor) -> Tensor:
        """Compute |1 - (lambda_j / lambda_i)^(1 - alpha) - (j - i) / n| at positions j; 0 before the tail.

        Args:
            starts: `(s, 1)`.
            places: `(s, p)` or `(p,)`.
        """
        law = -torch.expm1((1 - self.alphas[starts]) * (self.log[places] - self.log[starts]))
        offset = places - starts
        return (law - offset / self.n[starts]).abs_().masked_fill_(offset < 0, 0.0)

    def bounds(self, starts: Tensor) -> Tensor:
        """Compute lower bounds of the KS distances: the largest deviation at some positions of each tail."""
        share = torch.linspace(0, 1, KS_PROBES, device=self.log.device, dtype=self.log.dtype)
        bounds = []
        for part in starts[:, None].split(max(1, KS_TABLE // KS_PROBES)):
            places = part + ((self.n[part] - 1) * share).long()
            bounds.append(self.deviations(part, places).amax(dim=-1))
        return torch.cat(bounds)

    def distances(self, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Compute KS distances (the largest deviations over the whole tails) and their positions."""
        places = torch.arange(self.size, device=self.log.device)
        parts = starts[:, None].split(max(1, KS_TABLE // self.size))
        maxima = [self.deviations(part, places).max(dim=-1) for part in parts]
        return torch.cat([maximum.values for maximum in maxima]), torch.cat([maximum.indices for maximum in maxima])


def _fit_by_ks(lam: Tensor, config: FarmsConfig, candidates: Candidates) -> TailFit:
    """Fit the tail start with the smallest KS distance; of equal ones, the first."""
    tails = _Tails(lam)
    starts = candidates(lam, config)
    # A single eigenvalue, and a tail of equal ones, have no alpha.
    starts = starts[torch.isfinite(tails.alphas[starts]) & (tails.alphas[starts] > 1)]
    if not len(starts):
        nan = lam.new_tensor(torch.nan)
        return TailFit(nan, nan, nan)
    if len(starts) > KS_LEADERS:
        starts = _exclude(tails, starts)
    distances, _ = tails.distances(starts)
    winner = distances.argmin()
    return TailFit(tails.alphas[starts[winner]], distances[winner], lam[starts[winner]])


def _exclude(tails: _Tails, starts: Tensor) -> Tensor:
    """Exclude starts that cannot have the smallest KS distance; the result is ascending, like `starts`.

    Adjacent tails deviate most at nearly the same position. So every round evaluates a few leaders on their whole
    tails, and the other starts only at the positions of the two nearest leaders.
    """
    bounds = tails.bounds(starts)
    best, _ = tails.distances(starts[bounds.topk(1, largest=False).indices])
    starts = starts[bounds <= best]
    while (before := len(starts)) > KS_LEADERS:
        chosen = torch.linspace(0, before - 1, KS_LEADERS, device=starts.device).long()
        leaders = starts[chosen]
        distances, places = tails.distances(leaders)
        best = torch.minimum(best, distances.min())
        right = torch.searchsorted(leaders, starts)
        sides = torch.stack([places[(right - 1).clamp_min(0)], places[right]], dim=-1)
        bounds = tails.deviations(starts[:, None], sides).amax(dim=-1)
        starts = starts[bounds <= best]
        if before - len(starts) < KS_LEADERS // 2:  # equal eigenvalues: their tails have equal distances
            break
    return starts


def _all_but_last(lam: Tensor, config: FarmsConfig) -> Tensor:
    """Return every index but the last: one eigenvalue is no tail."""
    return torch.arange(max(0, len(lam) - 1), device=lam.device)


def _near_peak(lam: Tensor, config: FarmsConfig) -> Tensor:
    """Return the indices between 0.95 and 1.5 times the eigenvalue of the fullest bin."""
    if not len(lam):
        return _all_but_last(lam, config)
    log10 = lam.log10()
    low, high = log10[0], log10[-1]
    counts = torch.histc(log10, HISTOGRAM_BINS, min=low.item(), max=high.item())
    x = 10 ** (low + (high - low) * counts.argmax() / HISTOGRAM_BINS)
    # The released code compares log10 of the lower bound with the eigenvalue itself.
    lower = torch.log10(0.95 * x) if config.released_peak_bound else 0.95 * x
    keep = (lam >= lower) & (lam <= 1.5 * x)
    return keep[:-1].nonzero().squeeze(1)

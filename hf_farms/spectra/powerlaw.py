"""Eigenvalues -> PL_Alpha_Hill and its KS distance.

Shapes: b spectra of N ascending eigenvalues, i the index at which a tail starts, n = N - i.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hf_farms.config import FarmsConfig

__all__ = ["TailFit", "fit_tail"]

HISTOGRAM_BINS = 100
# Entries of a candidates x eigenvalues table that the KS search holds at once.
KS_TABLE = 2**20
# At how many places of its tail every candidate is tried first.
KS_PROBES = 16
# So many candidates are measured on their whole tails in every round.
KS_LEADERS = 8


class TailFit(NamedTuple):
    """Fits of b spectra, each `(b,)`; NaN where the tail has no two different eigenvalues.

    alpha, the KS distance between tail and law, and the eigenvalue at which the tail starts.
    """

    alpha: Tensor
    distance: Tensor
    tail_min: Tensor


def fit_tail(eigenvalues: Tensor, config: FarmsConfig) -> TailFit:
    """Fit the tail of each spectrum: alpha = 1 + n / sum_{j >= i} ln(lambda_j / lambda_i).

    PL_Alpha_Hill, TempBalance (NeurIPS 2023) and FARMS (arXiv 2506.06280), with the tail start of `config.fit`.
    Eigenvalues that are 0 are left out. `mid` costs O(N). `peak` and `goodness_of_fit` have up to N candidates of
    O(N) each, of which all but a few are excluded after some dozen places of their tail.

    Args:
        eigenvalues: `(b, N)` ascending, not negative.
        config: `fit`, `tail_divisor` and `released_peak_bound`.
    """
    zeros = (eigenvalues <= 0).sum(dim=-1)
    if config.fit == "mid":
        return _fit_mid(eigenvalues, zeros, config.tail_divisor)
    fits = [_fit_by_ks(row[z:], config) for row, z in zip(eigenvalues, zeros.tolist(), strict=True)]
    return TailFit(*(torch.stack(values) for values in zip(*fits, strict=True)))


def _fit_mid(lam: Tensor, zeros: Tensor, divisor: float) -> TailFit:
    size = lam.shape[-1]
    start = (zeros + ((size - zeros).double() / divisor).long()).clamp_max(size - 1)[:, None]
    index = torch.arange(size, device=lam.device)
    in_tail = index >= start
    tail_min = lam.gather(1, start)
    ratio = torch.where(in_tail, lam / tail_min, 1.0)
    n = (size - start).to(lam.dtype)
    alpha = 1 + n / ratio.log().sum(dim=-1, keepdim=True)
    alpha = torch.where(torch.isfinite(alpha), alpha, torch.nan)
    distance = (1 - ratio ** (1 - alpha) - (index - start) / n).abs()
    return TailFit(alpha[:, 0], torch.where(in_tail, distance, 0.0).amax(dim=-1), tail_min[:, 0])


class _Tails:
    """All tails of one spectrum without zeros: alpha for every start, KS distances on request."""

    def __init__(self, lam: Tensor) -> None:
        self.log = lam.log()
        self.size = len(lam)
        self.n = self.size - torch.arange(self.size, device=lam.device, dtype=lam.dtype)
        self.alphas = 1 + self.n / (self.log.flip(0).cumsum(0).flip(0) - self.n * self.log)

    def deviations(self, starts: Tensor, places: Tensor) -> Tensor:
        """|1 - (lambda_j / lambda_i)^(1 - alpha) - (j - i) / n| at the places j; 0 before the tail.

        Args:
            starts: `(s, 1)`.
            places: `(s, p)` or `(p,)`.
        """
        law = -torch.expm1((1 - self.alphas[starts]) * (self.log[places] - self.log[starts]))
        offset = places - starts
        return (law - offset / self.n[starts]).abs_().masked_fill_(offset < 0, 0.0)

    def bounds(self, starts: Tensor) -> Tensor:
        """Lower bounds of the KS distances: the largest deviation at some places of each tail."""
        share = torch.linspace(0, 1, KS_PROBES, device=self.log.device, dtype=self.log.dtype)
        found = []
        for part in starts[:, None].split(max(1, KS_TABLE // KS_PROBES)):
            places = part + ((self.n[part] - 1) * share).long()
            found.append(self.deviations(part, places).amax(dim=-1))
        return torch.cat(found)

    def distances(self, starts: Tensor) -> tuple[Tensor, Tensor]:
        """KS distances, the largest deviations over the whole tails, and where they lie."""
        places = torch.arange(self.size, device=self.log.device)
        parts = starts[:, None].split(max(1, KS_TABLE // self.size))
        found = [self.deviations(part, places).max(dim=-1) for part in parts]
        return torch.cat([maximum.values for maximum in found]), torch.cat([maximum.indices for maximum in found])


def _fit_by_ks(lam: Tensor, config: FarmsConfig) -> TailFit:
    """The candidate tail start with the smallest KS distance, the first of equals."""
    tails = _Tails(lam)
    starts = _candidates(lam, config)
    # The last eigenvalue alone, and a tail of equal ones, have no alpha.
    starts = starts[torch.isfinite(tails.alphas[starts]) & (tails.alphas[starts] > 1)]
    if not len(starts):
        nothing = lam.new_tensor(torch.nan)
        return TailFit(nothing, nothing, nothing)
    if len(starts) > KS_LEADERS:
        starts = _exclude(tails, starts)
    distances, _ = tails.distances(starts)
    winner = distances.argmin()
    return TailFit(tails.alphas[starts[winner]], distances[winner], lam[starts[winner]])


def _exclude(tails: _Tails, starts: Tensor) -> Tensor:
    """The starts that may still have the smallest distance; ascending, like `starts`.

    Neighbouring tails are farthest from their laws at nearly the same place. So in every round a few leaders are
    measured on their whole tails, and the others only where the two leaders next to them are farthest off.
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
        if before - len(starts) < KS_LEADERS // 2:  # equal eigenvalues: their tails cannot be told apart
            break
    return starts


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

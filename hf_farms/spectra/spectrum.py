"""One weight -> its `LayerSpectrum`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_farms.config import FarmsConfig
from hf_farms.spectra.esd import window_eigenvalues
from hf_farms.spectra.powerlaw import fit_tail
from hf_farms.spectra.windows import plan_windows, sample_windows

__all__ = ["LayerSpectrum", "layer_spectrum"]


@dataclass(frozen=True, kw_only=True)
class LayerSpectrum:
    """What the spectrum of one weight says.

    Attributes:
        alpha: PL_Alpha_Hill of the pooled spectrum; smaller means a heavier tail, a better trained layer. None where
            no tail can be fitted (fewer than two different eigenvalues, such as a weight of zeros).
        alpha_stderr: standard error of alpha over the windows; None with a single window.
        window_shape: rows and columns of a window.
        rows_lowered: the window rows asked for did not fit and were reduced.
        num_windows: windows pooled.
        ks_distance: Kolmogorov-Smirnov distance between the tail and the fitted law.
        num_eigenvalues: size of the pooled spectrum, N.
        spectral_norm: the largest eigenvalue, lambda_max.
        frobenius_norm_sq: sum of the eigenvalues.
        stable_rank: sum of the eigenvalues over lambda_max.
        alpha_hat: alpha log10(lambda_max).
        entropy: matrix entropy, -sum p ln p / ln N with p = lambda / sum lambda.
        eigenvalues: `(N,)` float64, ascending.
    """

    alpha: float | None
    alpha_stderr: float | None
    window_shape: tuple[int, int]
    rows_lowered: bool
    num_windows: int
    ks_distance: float | None
    num_eigenvalues: int
    spectral_norm: float
    frobenius_norm_sq: float
    stable_rank: float
    alpha_hat: float | None
    entropy: float
    eigenvalues: Tensor


def layer_spectrum(weight: Tensor, config: FarmsConfig | None = None) -> LayerSpectrum:
    """Measure one weight (FARMS, arXiv 2506.06280, section 3).

    Cost grows with the number of windows times the cube of their smaller side; memory with one batch of windows.

    Args:
        weight: `(m, n)`, any float dtype and device; not modified.
        config: windows and fit; the default takes the largest windows of which two fit side by side.

    Returns:
        The spectrum, with the standard error over windows where there are several.

    Raises:
        ValueError: the weight is not a matrix, is empty, or holds NaN or infinity.
    """
    config = config or FarmsConfig()
    if weight.ndim != 2 or weight.numel() == 0:
        raise ValueError(f"weight must be a matrix with at least one entry, got shape {tuple(weight.shape)}.")
    weight = weight.detach()
    if not torch.isfinite(weight).all():
        raise ValueError("weight must be finite, got NaN or infinity. Check how the checkpoint was saved.")
    m, n = weight.shape
    plan = plan_windows(m, n, config)
    spectra = window_eigenvalues(sample_windows(weight, config))
    pooled = spectra.flatten().sort().values
    alpha, distance = (_number(x) for x in fit_tail(pooled[None], config))
    total, largest = float(pooled.sum()), float(pooled[-1])
    return LayerSpectrum(
        alpha=alpha,
        alpha_stderr=_standard_error(spectra, config, disjoint=weight.numel() / (plan.rows * plan.cols)),
        window_shape=(plan.rows, plan.cols),
        rows_lowered=plan.lowered,
        num_windows=plan.num_windows,
        ks_distance=distance,
        num_eigenvalues=len(pooled),
        spectral_norm=largest,
        frobenius_norm_sq=total,
        stable_rank=total / largest if largest > 0 else 0.0,
        alpha_hat=alpha * math.log10(largest) if alpha is not None else None,
        entropy=_entropy(pooled, total),
        eigenvalues=pooled,
    )


def _standard_error(spectra: Tensor, config: FarmsConfig, *, disjoint: float) -> float | None:
    """Standard error of alpha from the scatter of the windows' own fits.

    Overlapping windows repeat each other, so no more are counted than would fit side by side.
    """
    if len(spectra) < 2:
        return None
    alphas = fit_tail(spectra, config)[0]
    alphas = alphas[torch.isfinite(alphas)]
    if len(alphas) < 2:
        return None
    return float(alphas.std()) / math.sqrt(min(len(alphas), disjoint))


def _entropy(pooled: Tensor, total: float) -> float:
    if len(pooled) < 2 or total <= 0:
        return 0.0
    p = pooled / total
    return float(-torch.xlogy(p, p).sum()) / math.log(len(pooled))


def _number(x: Tensor) -> float | None:
    value = float(x)
    return value if math.isfinite(value) else None

"""Measure the spectrum of weights: LayerSpectrum with alpha, its standard error, norms and entropy."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_farms.config import FarmsConfig
from hf_farms.config.checks import check, check_arguments
from hf_farms.registries import FITS
from hf_farms.spectra.esd import windows_eigenvalues
from hf_farms.spectra.powerlaw import fit_tail
from hf_farms.spectra.windows import WindowPlan, cut_windows, plan_weight

__all__ = ["LayerSpectrum", "layer_spectra", "layer_spectrum", "standard_error"]

# Weights whose largest entry is outside this range are scaled first: their squares would overflow or underflow float32.
UNSCALED = (1e-12, 1e15)


@dataclass(frozen=True, kw_only=True)
class LayerSpectrum:
    """Quantities of the spectrum of one weight.

    Attributes:
        alpha: PL_Alpha_Hill of the pooled spectrum; smaller means a heavier tail and a better trained layer. None if
            no tail can be fitted (fewer than two distinct eigenvalues, such as an all-zero weight).
        alpha_stderr: standard error of alpha over the windows; None with a single window.
        window_shape: rows and columns of a window.
        rows_lowered: whether the requested window rows did not fit and were reduced.
        num_windows: number of windows pooled.
        ks_distance: Kolmogorov-Smirnov distance between the tail and the fitted law.
        tail_min: smallest eigenvalue of the fitted tail; None for a convolution that was cut into several pieces, each
            with its own tail.
        num_eigenvalues: size of the pooled spectrum, N.
        spectral_norm: the largest eigenvalue, lambda_max.
        frobenius_norm_sq: sum of the eigenvalues.
        stable_rank: sum of the eigenvalues over lambda_max.
        alpha_hat: alpha log10(lambda_max).
        entropy: matrix entropy, -sum p ln p / ln N with p = lambda / sum lambda.
        eigenvalues: `(N,)` float64, ascending.
        window_alphas: alpha of each window by itself, NaN without a tail; empty with a single window.
    """

    alpha: float | None
    alpha_stderr: float | None
    window_shape: tuple[int, int]
    rows_lowered: bool
    num_windows: int
    ks_distance: float | None
    tail_min: float | None
    num_eigenvalues: int
    spectral_norm: float
    frobenius_norm_sq: float
    stable_rank: float
    alpha_hat: float | None
    entropy: float
    eigenvalues: Tensor
    window_alphas: tuple[float, ...] = ()


def layer_spectrum(weight: Tensor, config: FarmsConfig | None = None) -> LayerSpectrum:
    """Measure the spectrum of one weight (FARMS, arXiv 2506.06280, section 3).

    A convolution has one matrix per kernel position. Each is cut along its longer side, the spectra of a piece are
    pooled over the kernel and fitted, and alpha is the mean over pieces. Cost grows with the number of windows times
    the cube of their smaller side, memory with one batch of windows.

    Args:
        weight: `(m, n)`, or `(out, in, *kernel)`, any float or complex dtype and device; not modified.
        config: windows and fit. By default windows have an eighth of the smaller side, but at least 32 rows if two
            such windows fit; convolutions are cut into the paper's pieces.

    Returns:
        The spectrum; with several windows also the standard error of alpha.

    Raises:
        ValueError: the weight is a vector, is empty, or contains NaN or infinity.
    """
    check_arguments(layer_spectrum, config=config)
    _check_weight(weight)
    return layer_spectra([weight], config)[0]


def _check_weight(weight: object) -> None:
    if not isinstance(weight, Tensor):
        remedy = "Pass its weight." if isinstance(weight, nn.Module) else "Make one with torch.as_tensor."
        check(False, "weight", "a torch.Tensor", weight, remedy)
        return
    check(weight.layout == torch.strided, "weight", "dense", weight.layout, "Pass weight.to_dense().")
    check(not weight.is_meta, "weight", "in memory", "a meta tensor", "Load the weight first.")
    # Eight bits are scaled numbers of a quantized layer.
    ok = weight.is_complex() or (weight.is_floating_point() and weight.element_size() > 1)
    check(ok, "weight", "of a float or complex dtype of at least 16 bits", weight.dtype, "Pass the dequantized weight.")


def layer_spectra(
    weights: Sequence[Tensor], config: FarmsConfig | None = None, *, plans: Sequence[WindowPlan] | None = None
) -> list[LayerSpectrum]:
    """Measure several weights; windows of equal size are solved together.

    Args:
        weights: as for `layer_spectrum`, all on one device.
        config: windows and fit of all weights.
        plans: windows of each weight, if already planned.

    Raises:
        ValueError: as for `layer_spectrum`.
    """
    config = config or FarmsConfig()
    weights = [weight.detach() for weight in weights]
    scales = [_scale(weight) for weight in weights]
    plans = plans or [plan_weight(tuple(weight.shape), config) for weight in weights]
    by_window: dict[tuple[int, int, bool], list[int]] = defaultdict(list)
    for number, (weight, plan) in enumerate(zip(weights, plans, strict=True)):
        by_window[plan.rows, plan.cols, weight.is_complex()].append(number)
    # `mid` uses only the upper half of a spectrum; the KS search uses every eigenvalue.
    dtype = torch.float32 if FITS[config.fit].precision == "float32" else torch.float64
    spectra: dict[int, LayerSpectrum] = {}
    for numbers in by_window.values():
        windows = [cut_windows(weights[i] / scales[i] if scales[i] != 1 else weights[i], plans[i]) for i in numbers]
        solved = windows_eigenvalues(windows, dtype=dtype)
        for i, eigenvalues in zip(numbers, solved, strict=True):
            eigenvalues = eigenvalues * scales[i] ** 2 if scales[i] != 1 else eigenvalues
            spectra[i] = _spectrum(eigenvalues, plans[i], config)
    return [spectra[i] for i in range(len(weights))]


def _scale(weight: Tensor) -> float:
    """Return the divisor that keeps the squares of a weight in the range of float32; usually 1.

    Raises:
        ValueError: the weight is not a matrix or convolution, or is not finite.
    """
    if weight.ndim < 2 or weight.numel() == 0:
        raise ValueError(f"weight must be a matrix with at least one entry, got shape {tuple(weight.shape)}.")
    # One pass without a copy: min and max propagate NaN.
    low, high = (float(x) for x in (torch.view_as_real(weight) if weight.is_complex() else weight).aminmax())
    largest = max(-low, high)
    if not math.isfinite(largest):
        raise ValueError("weight must be finite, got NaN or infinity. Check how the checkpoint was saved.")
    return 1.0 if largest == 0 or UNSCALED[0] < largest < UNSCALED[1] else largest


def _spectrum(eigenvalues: Tensor, plan: WindowPlan, config: FarmsConfig) -> LayerSpectrum:
    """Fit each piece on its pooled windows; a matrix is one piece. `eigenvalues` has shape `(w, k)`."""
    pieces = eigenvalues.view(plan.pieces, -1).sort(dim=-1).values
    fit = fit_tail(pieces, config)
    pooled = pieces.flatten().sort().values
    alpha = _finite_or_none(fit.alpha.nanmean())
    alphas = fit_tail(eigenvalues, config).alpha if len(eigenvalues) > 1 else eigenvalues.new_empty(0)
    total, largest = float(pooled.sum()), float(pooled[-1])
    return LayerSpectrum(
        alpha=alpha,
        alpha_stderr=standard_error(alphas, plan),
        window_alphas=tuple(alphas.tolist()),
        window_shape=(plan.rows, plan.cols),
        rows_lowered=plan.lowered,
        num_windows=plan.num_windows,
        ks_distance=_finite_or_none(fit.distance.nanmean()),
        tail_min=_finite_or_none(fit.tail_min[0]) if plan.pieces == 1 and alpha is not None else None,
        num_eigenvalues=len(pooled),
        spectral_norm=largest,
        frobenius_norm_sq=total,
        stable_rank=total / largest if largest > 0 else 0.0,
        alpha_hat=alpha * math.log10(largest) if alpha is not None else None,
        entropy=_entropy(pooled, total),
        eigenvalues=pooled,
    )


def standard_error(alphas: Tensor, plan: WindowPlan) -> float | None:
    """Estimate the standard error of the mean of one alpha for each window, or of one difference of two.

    Windows with common rows or columns are correlated, so rows and columns are random effects (two-way analysis of
    variance). Overlapping windows repeat each other, so along each side at most as many windows count as would fit
    without overlap.
    """
    finite = torch.isfinite(alphas)
    count = int(finite.sum())
    if count < 2:
        return None
    down, across = plan.num_disjoint
    if finite.all() and plan.kernel == 1 and min(len(plan.row_starts), len(plan.col_starts)) > 1:
        grid = alphas.view(len(plan.row_starts), len(plan.col_starts))
        return math.sqrt(_two_way_variance(grid, down, across))
    return math.sqrt(float(alphas[finite].var()) / min(count, down * across * plan.kernel))


def _two_way_variance(alphas: Tensor, down: float, across: float) -> float:
    """Estimate the variance of the mean of `(a, b)` alphas with row and column effects.

    Args:
        alphas: one per window.
        down: effective number of windows along the rows.
        across: effective number of windows along the columns.
    """
    a, b = alphas.shape
    rows, cols = alphas.mean(dim=1, keepdim=True), alphas.mean(dim=0, keepdim=True)
    residual = (alphas - rows - cols + alphas.mean()).square().sum() / ((a - 1) * (b - 1)) / (down * across)
    return float(torch.maximum(residual, rows.var() / down + cols.var() / across - residual))


def _entropy(pooled: Tensor, total: float) -> float:
    if len(pooled) < 2 or total <= 0:
        return 0.0
    p = pooled / total
    return float(-torch.xlogy(p, p).sum()) / math.log(len(pooled))


def _finite_or_none(x: Tensor) -> float | None:
    value = float(x)
    return value if math.isfinite(value) else None

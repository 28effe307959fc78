"""Allocate learning-rate factors from alphas: less trained layers (larger alpha) get larger factors.

Symbols: a_l alpha, L number of alphas, f_l factor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from hf_farms.allocation.ends import PlacedScores, end_positions, place_ends, warn_of_few
from hf_farms.allocation.sparsity import reliability
from hf_farms.config import FarmsLRConfig
from hf_farms.config.checks import check, check_arguments, is_real
from hf_farms.config.effects import warn_unused
from hf_farms.registries import LR_MAPS
from hf_farms.reports import LayerRecord, SpectralReport

__all__ = ["allocate_lr", "lr_factors", "smoothed"]


class _Unit(NamedTuple):
    """Layers with a common factor; alpha is None if the factor stays 1. `block` is None outside of the blocks."""

    layers: tuple[str, ...]
    num_weights: int
    alpha: float | None
    stderr: float | None
    block: int | None = None


def allocate_lr(report: SpectralReport, *, config: FarmsLRConfig | None = None) -> dict[str, float]:
    """Compute the learning-rate factor of every layer in a report.

    Args:
        report: report of the model in its current state.
        config: map, scales, unit and included layers.

    Returns:
        Factor by layer name; 1 for excluded layers and ends that are apart. With unit "block", all layers of a block
        have the same factor.
    """
    check_arguments(allocate_lr, report=report, config=config)
    config = config or FarmsLRConfig()
    warn_unused(config)
    units = list(_units(report, config))
    placed = _placed(units, len(report.blocks), config)
    warn_of_few(placed, config.ends, result="all factors are 1")
    included = [units[index] for index in placed.mapped]
    factors = lr_factors(
        [alpha for alpha in placed.scores if alpha is not None],
        map=config.map,
        min_scale=config.min_scale,
        max_scale=config.max_scale,
        released_step=config.released_step,
    )
    if config.shrink:
        factors = _shrunk(factors, placed.reliability)
    if config.normalize and factors:
        weights = [unit.num_weights for unit in included]
        mean = math.fsum(w * f for w, f in zip(weights, factors, strict=True)) / sum(weights)
        factors = [factor / mean for factor in factors]
    result = {name: 1.0 for unit in units for name in unit.layers}
    return result | {name: factor for unit, factor in zip(included, factors, strict=True) for name in unit.layers}


def smoothed(
    report: SpectralReport, *, layers: Mapping[str, float], blocks: Mapping[str, float], keep: float
) -> SpectralReport:
    """Smooth the alphas of a report exponentially: `keep * earlier + (1 - keep) * alpha`.

    Args:
        report: report of the model in its current state.
        layers: earlier alphas by layer name; layers without one are not changed.
        blocks: earlier alphas by block name.
        keep: weight of the earlier alphas, in [0, 1).

    Returns:
        A copy of the report.
    """

    def smooth(records: tuple[LayerRecord, ...]) -> tuple[LayerRecord, ...]:
        return tuple(replace(layer, alpha=_mixed(layer.alpha, layers.get(layer.name), keep)) for layer in records)

    smoothed_blocks = (
        replace(block, alpha=_mixed(block.alpha, blocks.get(block.name), keep), layers=smooth(block.layers))
        for block in report.blocks
    )
    # The statement about blocks that stand out is one about the alphas before.
    return replace(report, blocks=tuple(smoothed_blocks), outside=smooth(report.outside), standing_out=None)


def _mixed(alpha: float | None, earlier: float | None, keep: float) -> float | None:
    return alpha if alpha is None or earlier is None or keep == 0 else keep * earlier + (1 - keep) * alpha


def _units(report: SpectralReport, config: FarmsLRConfig) -> Iterator[_Unit]:
    def is_included(layer: LayerRecord) -> bool:
        return layer.num_eigenvalues >= config.min_eigenvalues and layer.counts

    units: list[_Unit] = []
    for index, block in enumerate(report.blocks):
        if config.unit == "layer":
            units += [_layer_unit(layer, is_included(layer), index) for layer in block.layers]
        else:
            names = tuple(layer.name for layer in block.layers)
            alpha = block.alpha if any(is_included(layer) for layer in block.layers) else None
            units.append(_Unit(names, block.num_weights, alpha, block.alpha_stderr, index))
    yield from units
    if config.outside:
        yield from (_layer_unit(layer, is_included(layer)) for layer in report.outside)


def _layer_unit(layer: LayerRecord, included: bool, block: int | None = None) -> _Unit:
    return _Unit((layer.name,), math.prod(layer.shape), layer.alpha if included else None, layer.alpha_stderr, block)


def _placed(units: Sequence[_Unit], num_blocks: int, config: FarmsLRConfig) -> PlacedScores:
    """Place the units of the first and the last block; "released" places the first and the last unit."""
    inside = [index for index, unit in enumerate(units) if unit.block is not None]
    beside = range(len(inside), len(units))
    if config.ends == "released":
        ends = {*inside[:1], *inside[-1:]}
    else:
        blocks = end_positions(config.ends, num_blocks)
        ends = {index for index in inside if units[index].block in blocks}
    alphas, errors = [unit.alpha for unit in units], [unit.stderr for unit in units]
    return place_ends(alphas, errors, ends=config.ends, positions=ends, beside=beside)


def lr_factors(
    alphas: Sequence[float],
    *,
    map: str = FarmsLRConfig.map,  # noqa: A002 - the papers' word
    min_scale: float = FarmsLRConfig.min_scale,
    max_scale: float = FarmsLRConfig.max_scale,
    stderr: Sequence[float | None] | None = None,
    released_step: bool = FarmsLRConfig.released_step,
) -> list[float]:
    """Map alphas to learning-rate factors (TempBalance, NeurIPS 2023; `sigmoid`: Model Balancing, arXiv 2410.12178).

    linear: min_scale + (max_scale - min_scale) (a_l - min a) / (max a - min a).
    sqrt, log2: g(a_l) L / sum g, with g the square root or logarithm; the mean is 1, the scales are not used.
    step: min_scale + (max_scale - min_scale) rank_l / (L - 1).
    sigmoid: 10^(2 s (sigmoid(10 (a_l - mean a)) - 1/2)), with s = log10(max_scale) above the mean and -log10(min_scale)
    below, so that all factors are between the scales.

    Args:
        alphas: one per layer or block, above 1.
        map: name of the map.
        min_scale: factor of the smallest alpha.
        max_scale: factor of the largest alpha.
        stderr: standard error of each alpha. If given, factors shrink towards 1 by the reliability of the alphas.
        released_step: divide the rank by L as the released code does, which never reaches max_scale.

    Returns:
        One factor per alpha; all 1 if all alphas are equal.

    Raises:
        ValueError: unknown map, alphas not above 1, or scales that are not positive and ordered.
    """
    entry = LR_MAPS[map]
    if not (is_real(min_scale) and is_real(max_scale) and 0 < min_scale <= max_scale < math.inf):
        raise ValueError(f"scales must be 0 < min_scale <= max_scale, got {min_scale!r} and {max_scale!r}.")
    check(isinstance(alphas, Sequence), "alphas", "a list of numbers", alphas)
    ok = all(is_real(a) and math.isfinite(a) and a > 1 for a in alphas)
    check(ok, "alphas", "finite and above 1", list(alphas))
    if not alphas or min(alphas) == max(alphas):
        return [1.0] * len(alphas)
    options = {"min_scale": min_scale, "max_scale": max_scale, "released_step": released_step}
    factors = entry.load()(alphas, **{name: options[name] for name in entry.options})
    return _shrunk(factors, 1.0 if stderr is None else reliability(alphas, stderr))


def _shrunk(factors: Sequence[float], trust: float) -> list[float]:
    return [1 + trust * (factor - 1) for factor in factors]

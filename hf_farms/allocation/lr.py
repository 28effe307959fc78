"""Alphas -> factors on the learning rate: the worse trained (the larger alpha), the larger the factor.

Symbols: a_l alpha, L how many there are, f_l factor.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from hf_farms.allocation.sparsity import reliability
from hf_farms.config import LR_MAPS, FarmsLRConfig, LRMap
from hf_farms.reports import LayerRecord, SpectralReport

__all__ = ["allocate_lr", "lr_factors", "smoothed"]

# t of the sigmoid map (Model Balancing).
SIGMOID_TEMPERATURE = 10.0


class _Unit(NamedTuple):
    """What gets one factor; alpha is None where it stays at 1."""

    layers: tuple[str, ...]
    num_weights: int
    alpha: float | None
    stderr: float | None


def allocate_lr(report: SpectralReport, *, config: FarmsLRConfig | None = None) -> dict[str, float]:
    """Factor on the learning rate of every layer in a report, by layer name.

    Args:
        report: of the model as it is now.
        config: map, scales, unit and what takes part.

    Returns:
        For unit "block" the layers of a block share one factor. 1 for what takes no part.
    """
    config = config or FarmsLRConfig()
    units = list(_units(report, config))
    taking_part = [unit for unit in units if unit.alpha is not None]
    factors = lr_factors(
        [unit.alpha for unit in taking_part if unit.alpha is not None],
        map=config.map,
        min_scale=config.min_scale,
        max_scale=config.max_scale,
        stderr=[unit.stderr for unit in taking_part] if config.shrink else None,
        released_step=config.released_step,
    )
    if config.normalise and factors:
        weights = [unit.num_weights for unit in taking_part]
        mean = math.fsum(w * f for w, f in zip(weights, factors, strict=True)) / sum(weights)
        factors = [factor / mean for factor in factors]
    found = {name: 1.0 for unit in units for name in unit.layers}
    return found | {name: factor for unit, factor in zip(taking_part, factors, strict=True) for name in unit.layers}


def smoothed(
    report: SpectralReport, *, layers: Mapping[str, float], blocks: Mapping[str, float], keep: float
) -> SpectralReport:
    """Alphas of a report with their share of earlier ones: `keep * earlier + (1 - keep) * alpha`.

    Args:
        report: of the model as it is now.
        layers: earlier alphas by layer name; what has none stays as it is.
        blocks: the same by block name.
        keep: share of the earlier ones, in [0, 1).
    """

    def of_layers(found: tuple[LayerRecord, ...]) -> tuple[LayerRecord, ...]:
        return tuple(replace(layer, alpha=_mixed(layer.alpha, layers.get(layer.name), keep)) for layer in found)

    mixed = (
        replace(block, alpha=_mixed(block.alpha, blocks.get(block.name), keep), layers=of_layers(block.layers))
        for block in report.blocks
    )
    return replace(report, blocks=tuple(mixed), outside=of_layers(report.outside))


def _mixed(alpha: float | None, before: float | None, keep: float) -> float | None:
    return alpha if alpha is None or before is None or keep == 0 else keep * before + (1 - keep) * alpha


def _units(report: SpectralReport, config: FarmsLRConfig) -> Iterator[_Unit]:
    def enough(layer: LayerRecord) -> bool:
        return layer.num_eigenvalues >= config.min_eigenvalues and layer.role != "router"

    units = []
    for block in report.blocks:
        if config.unit == "layer":
            units += [_of_layer(layer, enough(layer)) for layer in block.layers]
        else:
            names = tuple(layer.name for layer in block.layers)
            alpha = block.alpha if any(enough(layer) for layer in block.layers) else None
            units.append(_Unit(names, block.num_weights, alpha, block.alpha_stderr))
    if config.skip_ends:
        ends = (0, len(units) - 1)
        units = [unit._replace(alpha=None) if i in ends else unit for i, unit in enumerate(units)]
    yield from units
    if config.outside:
        yield from (_of_layer(layer, enough(layer)) for layer in report.outside)


def _of_layer(layer: LayerRecord, takes_part: bool) -> _Unit:
    return _Unit((layer.name,), math.prod(layer.shape), layer.alpha if takes_part else None, layer.alpha_stderr)


def lr_factors(
    alphas: Sequence[float],
    *,
    map: LRMap = "linear",  # noqa: A002 - the papers' word
    min_scale: float = 0.5,
    max_scale: float = 1.5,
    stderr: Sequence[float | None] | None = None,
    released_step: bool = False,
) -> list[float]:
    """Factors on the learning rate (TempBalance, NeurIPS 2023; `sigmoid`: Model Balancing, arXiv 2410.12178).

    linear: min_scale + (max_scale - min_scale) (a_l - min a) / (max a - min a).
    sqrt, log2: g(a_l) L / sum g, with g the root or the logarithm; mean 1, the scales are not used.
    step: min_scale + (max_scale - min_scale) rank_l / (L - 1).
    sigmoid: 10^(2 s (sigmoid(10 (a_l - mean a)) - 1/2)), s = log10(max_scale) above the mean and -log10(min_scale)
    below, so that the factors lie between both scales.

    Args:
        alphas: one per layer or block, above 1.
        map: which of them.
        min_scale: factor of the smallest alpha.
        max_scale: factor of the largest.
        stderr: standard error of each alpha; with them factors shrink to 1 by the reliability of the alphas.
        released_step: divide the rank by L, as the released code does, which never reaches max_scale.

    Returns:
        One factor each; all 1 where all alphas are equal.

    Raises:
        ValueError: an unknown map, or scales that are not positive and ordered.
    """
    if map not in LR_MAPS:
        raise ValueError(f"map must be one of {', '.join(LR_MAPS)}, got {map!r}.")
    if not 0 < min_scale <= max_scale < math.inf:
        raise ValueError(f"scales must be 0 < min_scale <= max_scale, got {min_scale!r} and {max_scale!r}.")
    if not all(math.isfinite(a) and a > 1 for a in alphas):
        raise ValueError(f"alphas must be finite and above 1, got {list(alphas)!r}.")
    if not alphas or min(alphas) == max(alphas):
        return [1.0] * len(alphas)
    factors = {
        "linear": lambda: _linear(alphas, min_scale, max_scale),
        "sqrt": lambda: _proportional(alphas, math.sqrt),
        "log2": lambda: _proportional(alphas, math.log2),
        "step": lambda: _step(alphas, min_scale, max_scale, len(alphas) - (0 if released_step else 1)),
        "sigmoid": lambda: _sigmoid(alphas, min_scale, max_scale),
    }[map]()
    trust = 1.0 if stderr is None else reliability(alphas, stderr)
    return [1 + trust * (factor - 1) for factor in factors]


def _linear(alphas: Sequence[float], low: float, high: float) -> list[float]:
    smallest, span = min(alphas), max(alphas) - min(alphas)
    return [low + (high - low) * (a - smallest) / span for a in alphas]


def _proportional(alphas: Sequence[float], g: Callable[[float], float]) -> list[float]:
    values = [g(a) for a in alphas]
    return [value * len(values) / math.fsum(values) for value in values]


def _step(alphas: Sequence[float], low: float, high: float, steps: int) -> list[float]:
    """Equal alphas share the mean of their ranks."""
    ordered = sorted(alphas)
    first = {a: ordered.index(a) for a in ordered}
    ranks = [first[a] + (ordered.count(a) - 1) / 2 for a in alphas]
    return [low + (high - low) * rank / steps for rank in ranks]


def _sigmoid(alphas: Sequence[float], low: float, high: float) -> list[float]:
    mean = statistics.fmean(alphas)
    factors = []
    for a in alphas:
        strength = math.log10(high) if a > mean else -math.log10(low)
        # tanh(x / 2) = 2 sigmoid(x) - 1, without overflow.
        factors.append(10 ** (strength * math.tanh(SIGMOID_TEMPERATURE * (a - mean) / 2)))
    return factors

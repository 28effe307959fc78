"""Spectral report -> sparsity of each block."""

from __future__ import annotations

import math

from hf_farms.allocation.sparsity import allocate_sparsity, reliability
from hf_farms.config import PruneConfig
from hf_farms.reports import SpectralReport

__all__ = ["block_alphas", "plan_sparsity", "spread_note"]


def plan_sparsity(report: SpectralReport, *, config: PruneConfig | None = None) -> list[float]:
    """Sparsity of each block, in order of depth, for the allocation of `config`.

    `farms` and `alpha` are two measurements under one map: `farms` needs a report over windows, `alpha` one over whole
    matrices. A block that has no alpha (nothing but zeros) is given the mean of the others.

    Args:
        report: of the model to be pruned.
        config: sparsity, allocation, spread and shrinkage.

    Raises:
        ValueError: the report was measured otherwise than the allocation needs.
    """
    config = config or PruneConfig()
    sizes = [block.num_weights for block in report.blocks]
    if config.allocation == "uniform":
        return [config.sparsity] * len(sizes)
    if (config.allocation == "alpha") != (report.config.window_rows is None):
        needed = "whole matrices (window_rows=None)" if config.allocation == "alpha" else "windows"
        raise ValueError(
            f"report must be measured on {needed} for allocation {config.allocation!r}, got window_rows="
            f"{report.config.window_rows!r}. Use analyze(model, config.measurement())."
        )
    scores, errors = block_alphas(report)
    return allocate_sparsity(
        scores,
        sizes=sizes,
        target=config.sparsity,
        spread=config.spread,
        stderr=errors if config.shrink else None,
        bounds=(0.0, config.max_sparsity),
    )


def block_alphas(report: SpectralReport) -> tuple[list[float], list[float | None]]:
    """Alpha of each block and its standard error; the mean of the others where a block has none."""
    known = [block.alpha for block in report.blocks if block.alpha is not None]
    mean = math.fsum(known) / len(known) if known else 0.0
    alphas = [mean if block.alpha is None else block.alpha for block in report.blocks]
    return alphas, [block.alpha_stderr for block in report.blocks]


def spread_note(report: SpectralReport, config: PruneConfig) -> str | None:
    """What shrinkage did to the spread, in a sentence; None where it does not apply or did nothing."""
    if config.allocation == "uniform" or not config.shrink or len(report.blocks) < 2:
        return None
    trust = reliability(*block_alphas(report))
    shrunk, before = f"{config.spread * trust:.4g}", f"{config.spread:.4g}"
    if shrunk == before:
        return None
    if trust == 0:
        return f"The blocks' alphas differ by no more than chance (reliability 0.000): spread {before} became {shrunk}."
    return f"Reliability of the block scores {trust:.3f}: spread {before} became {shrunk}."

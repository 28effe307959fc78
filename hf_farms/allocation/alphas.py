"""Alphas of blocks, and of the roles in them, as scores of an allocation."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hf_farms.allocation.block_scores import Estimate, LayerAlpha, block_scores
from hf_farms.allocation.ends import end_positions
from hf_farms.config.ends import Ends
from hf_farms.reports import SpectralReport

__all__ = ["block_alphas", "role_alphas"]

# Scores, and the standard error of each.
Alphas = tuple[list[float], list[float | None]]


def block_alphas(report: SpectralReport, *, ends: Ends = "measured") -> Alphas:
    """Return alpha of each block and its standard error; a block without alpha gets the mean of the others.

    Args:
        report: with the blocks.
        ends: blocks that this places do not count in the mean.
    """
    return _filled([None if b.alpha is None else (b.alpha, b.alpha_stderr) for b in report.blocks], ends)


def role_alphas(report: SpectralReport, role: str, ends: Ends = "measured") -> Alphas:
    """Return the same for the layers of one role: the mean over them in each block."""
    layers = [
        [
            LayerAlpha(layer.role, layer.alpha, layer.alpha_stderr)
            for layer in block.layers
            if layer.role == role and layer.alpha is not None
        ]
        for block in report.blocks
    ]
    return _filled(block_scores(layers, "mean"), ends)


def _filled(estimates: Sequence[Estimate | None], ends: Ends) -> Alphas:
    apart = end_positions(ends, len(estimates))
    known = [estimate[0] for i, estimate in enumerate(estimates) if estimate is not None and i not in apart]
    mean = math.fsum(known) / len(known) if known else 0.0
    return (
        [mean if estimate is None else estimate[0] for estimate in estimates],
        [None if estimate is None else estimate[1] for estimate in estimates],
    )

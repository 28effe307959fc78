"""Standard errors of differences of two models, over windows at the same places of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from hf_farms.allocation.block_scores import LayerAlpha, block_scores
from hf_farms.config import FarmsConfig
from hf_farms.reports import LayerRecord
from hf_farms.spectra.spectrum import standard_error
from hf_farms.spectra.windows import plan_weight

__all__ = ["PairedWindows"]


@dataclass(frozen=True)
class PairedWindows:
    """Errors of the differences of layers and blocks that were measured in this process.

    Two checkpoints of one model share most of what differs between windows, which cancels in the difference of a pair.

    Attributes:
        config: of both measurements.
    """

    config: FarmsConfig

    def layer(self, first: LayerRecord, second: LayerRecord) -> float | None:
        """Return the error of the difference of a layer; None for windows of other places, or a single one."""
        alphas = [getattr(record, "window_alphas", ()) for record in (first, second)]
        if first.shape != second.shape or first.window_shape != second.window_shape or len(alphas[0]) < 2:
            return None
        if len(alphas[0]) != len(alphas[1]):
            return None
        config = self.config if len(first.shape) > 2 else replace(self.config, window_rows=first.window_shape[0])
        first_alphas, second_alphas = (torch.tensor(each, dtype=torch.float64) for each in alphas)
        return standard_error(second_alphas - first_alphas, plan_weight(first.shape, config))

    def block(self, pairs: Sequence[tuple[LayerRecord, LayerRecord]]) -> float | None:
        """Return the error of the difference of a block, propagated as that of its score.

        None without all layers, and for scores that are not means over roles: their difference is not a score of
        differences.
        """
        if self.config.block_score != "mean":
            return None
        layers = []
        for first, second in pairs:
            if not first.counts or first.alpha is None or second.alpha is None:
                continue
            if (error := self.layer(first, second)) is None:
                return None
            layers.append(LayerAlpha(first.role, second.alpha - first.alpha, error))
        (score,) = block_scores([layers], "mean")
        return score[1] if score is not None else None

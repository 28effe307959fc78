"""Check the ranking of a search: KL after the model was pruned block by block, as the result is pruned."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import cast

import torch

from hf_farms.blocks import ModelBlockSource
from hf_farms.config import PruneConfig
from hf_farms.config.effects import given_fields
from hf_farms.metrics.divergence import Batches, count_tokens, divergences, final_hidden
from hf_farms.pruning.calibration_pass import Batch
from hf_farms.pruning.pruner import prune
from hf_farms.pruning.recovery import block_config, single_sequences
from hf_farms.pruning.removal_plan import prunable_layers
from hf_farms.search.tokens import evenly

__all__ = ["CHECK_SEQUENCES", "can_check", "check_config", "pruned_loss", "rank_correlation"]

# Passes of the recovery of a plan that is compared with others, and sequences at most. With the defaults of a recovery
# the check would take several times as long as the search.
CHECK_PASSES, CHECK_SEQUENCES = 1, 32


def can_check(source: ModelBlockSource) -> bool:
    """Return whether the model can be pruned and restored: its weights are in memory, and not written anywhere."""
    return source.in_memory and source.results is None


def check_config(config: PruneConfig) -> PruneConfig:
    """Return the config that prunes finalists: one pass of a recovery of blocks, and no training of the whole model."""
    return replace(block_config(config, CHECK_SEQUENCES), recover_passes=CHECK_PASSES) if config.recovers else config


def pruned_loss(
    source: ModelBlockSource,
    config: PruneConfig,
    sparsities: Sequence[float],
    *,
    calibration: Sequence[Batch],
    batches: Batches,
) -> float:
    """Return KL(dense || pruned) in nats per token after sequential pruning; the weights are restored.

    If `config` has a recovery, masks are made and weights fitted on at most 32 of the calibration sequences, in one
    pass; some of them decide whether a fit is kept. Memory: a copy of the weights of all blocks, and that of `prune`.
    Time: a prune with that recovery, and two forward passes of the batches.

    Args:
        source: the dense model in memory.
        config: method and pattern; its allocation is one that searches.
        sparsities: of each block.
        calibration: as for `prune`.
        batches: selection data.
    """
    with source.evaluation(), torch.no_grad():
        dense = [final_hidden(source, batch) for batch in batches]
        with _restored(source), warnings.catch_warnings(), given_fields(()):
            # The final prune warns of the same things.
            warnings.simplefilter("ignore")
            if config.recovers:
                calibration = evenly(single_sequences(cast(Batches, calibration)), CHECK_SEQUENCES)
            prune(source, check_config(config), calibration=calibration or None, scores=sparsities)
            pruned = [final_hidden(source, batch) for batch in batches]
    total, num_tokens = 0.0, 0
    with source.evaluation(), torch.no_grad():
        for batch, reference, hidden in zip(batches, dense, pruned, strict=True):
            total += divergences(source, batch, reference, {"pruned": hidden})["pruned"]
            num_tokens += count_tokens(batch, reference)
    return total / max(1, num_tokens)


@contextmanager
def _restored(source: ModelBlockSource) -> Iterator[None]:
    """Restore the weights of all prunable layers at the end."""
    views = [layer for index in range(len(source)) for layer in prunable_layers(source.open(index).layers)]
    saved = [view.read(check=False).clone() for view in views]
    try:
        yield
    finally:
        for view, weight in zip(views, saved, strict=True):
            view.write_(weight)


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation, ties at their mean rank; None for fewer than three pairs or equal values."""
    if len(one) < 3:
        return None
    first, second = _ranks(one), _ranks(other)
    middle = (len(one) + 1) / 2
    product = sum((a - middle) * (b - middle) for a, b in zip(first, second, strict=True))
    scale = sum((a - middle) ** 2 for a in first) * sum((b - middle) ** 2 for b in second)
    return product / scale**0.5 if scale > 0 else None


def _ranks(values: Sequence[float]) -> list[float]:
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2 for value in values
    ]

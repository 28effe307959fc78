"""Scores of blocks from their weights and activations, for an allocation that needs activations."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hf_farms.blocks import BlockSource, LayerView
from hf_farms.config import PruneConfig
from hf_farms.errors import ModelError
from hf_farms.progress import Progress, no_progress
from hf_farms.pruning.calibration_pass import Batch, CalibrationPass, calibration_batches
from hf_farms.pruning.hidden_states import HiddenStates
from hf_farms.pruning.measuring import measure
from hf_farms.pruning.removal_plan import prunable_layers
from hf_farms.registries import ALLOCATIONS, load

__all__ = ["MeasuredLayer", "score_blocks"]


class MeasuredLayer(NamedTuple):
    """The input of an allocation's `score`: a layer, and the prepared statistic of its inputs; None: it got none."""

    view: LayerView
    inputs: Any


def score_blocks(
    source: BlockSource,
    config: PruneConfig,
    calibration: Iterable[Batch],
    *,
    activations: Path | None = None,
    progress: Progress = no_progress,
) -> list[float]:
    """Score every block of the dense model on calibration data.

    Time is two forward passes of the data through the blocks; memory its hidden states, and the statistics of all
    layers of one block.

    Args:
        source: the dense model.
        config: names an allocation that needs activations.
        calibration: as for `prune`.
        activations: a folder for the hidden states; None: they stay in memory.
        progress: called with the stage ("capture", "score"), steps done and steps in all.

    Returns:
        One number for each block.

    Raises:
        ValueError: an allocation that needs no activations, or a block that is pruned already.
        ModelError: a score that is not finite.
    """
    entry = ALLOCATIONS[config.allocation]
    if entry.score is None or entry.statistic is None:
        raise ValueError(f"allocation must be one that needs activations, got {config.allocation!r}.")
    pruned = next((index for index in range(len(source)) if source.finished(index) is not None), None)
    if pruned is not None:
        raise ValueError(
            f"blocks must be dense to be scored, got block {pruned} pruned by an earlier run. Pass its scores."
        )
    score, statistic = load(entry.score), load(entry.statistic)
    scores = []
    with source.evaluation(), torch.no_grad():
        data = CalibrationPass(
            source, calibration_batches(calibration, source, config), HiddenStates(activations), progress
        )
        for index in range(len(source)):
            block = source.open(index)
            layers = prunable_layers(block.layers)
            measured = measure(layers, statistic, data.runs(block, index))
            inputs = {name: stat.prepared() if stat.num_tokens else None for name, stat in measured.items()}
            scores.append(float(score([MeasuredLayer(layer, inputs[layer.name]) for layer in layers])))
            if not math.isfinite(scores[-1]):
                raise ModelError(f"scores of blocks must be finite, got {scores[-1]} for {block.metadata.name}.")
            if index < len(source) - 1:
                data.advance(block, index)
            progress("score", index + 1, len(source))
    return scores

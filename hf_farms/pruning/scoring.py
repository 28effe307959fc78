"""Scores of blocks and roles from weights and activations, for allocations that need activations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hf_farms.allocation.plan import WHOLE, by_role
from hf_farms.blocks import Block, BlockSource, LayerView
from hf_farms.config import PruneConfig
from hf_farms.errors import ModelError
from hf_farms.processes import ONE_PROCESS, WorkingRanks, folder_of_rank
from hf_farms.progress import Progress, no_progress
from hf_farms.pruning.calibration_pass import Batch, CalibrationPass, calibration_batches
from hf_farms.pruning.hidden_states import HiddenStates
from hf_farms.pruning.measuring import Run, measure
from hf_farms.pruning.methods import Statistic
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
    ranks: WorkingRanks = ONE_PROCESS,
    progress: Progress = no_progress,
) -> dict[str, list[dict[str, float | None]]]:
    """Score every block of the dense model on calibration data, or every role in it, in one pass.

    Time is two forward passes of the data through the blocks; memory its hidden states, and the statistics of all
    layers of one block.

    Args:
        source: the dense model.
        config: names an allocation that needs activations, or a mixture with some; and the granularity.
        calibration: as for `prune`.
        activations: a folder for the hidden states; None: they stay in memory.
        ranks: with several processes, each runs a share of the batches; all return the same scores.
        progress: called with the stage ("capture", "score"), steps done and steps in all.

    Returns:
        Allocation -> for each block: role, or "" for the whole block -> score; None where there can be none, such as
        layers without visible inputs.

    Raises:
        ValueError: an allocation that needs no activations, or a block that is pruned already.
        ModelError: a score that is not finite.
    """
    scorers = _scorers(config)
    if not scorers:
        raise ValueError(f"allocation must be one that needs activations, got {config.allocation!r}.")
    pruned = next((index for index in range(len(source)) if source.finished(index) is not None), None)
    if pruned is not None:
        raise ValueError(
            f"blocks must be dense to be scored, got block {pruned} pruned by an earlier run. Pass its scores."
        )
    scores: dict[str, list[dict[str, float | None]]] = {scorer.allocation: [] for scorer in scorers}
    with source.evaluation(), torch.no_grad():
        batches = calibration_batches(calibration, source, config)
        hidden = HiddenStates(folder_of_rank(activations, ranks))
        data = CalibrationPass(source, batches, hidden, progress, ranks=ranks)
        progress("score", 0, len(source))
        for index in range(len(source)):
            block = source.open(index)
            for name, values in _score_block(block, data.runs(block, index), scorers, ranks).items():
                scores[name].append(values)
            if index < len(source) - 1:
                data.advance(block, index)
            progress("score", index + 1, len(source))
    return scores


class _Scorer(NamedTuple):
    """The functions of an allocation that needs activations, and whether it scores each role."""

    allocation: str
    score: Callable[[Sequence[MeasuredLayer]], float | None]
    statistic: type[Statistic]
    roles: bool


def _scorers(config: PruneConfig) -> list[_Scorer]:
    names = ALLOCATIONS[config.allocation].parts or (config.allocation,)
    return [
        _Scorer(name, load(entry.score), load(entry.statistic), by_role(replace(config, allocation=name)))
        for name in names
        if (entry := ALLOCATIONS[name]).score is not None and entry.statistic is not None
    ]


def _score_block(
    block: Block, runs: Sequence[Run], scorers: Sequence[_Scorer], ranks: WorkingRanks
) -> dict[str, dict[str, float | None]]:
    """Return the scores of one block by allocation; allocations with the same statistic share its measurement."""
    layers = prunable_layers(block.layers)
    measured: dict[type[Statistic], list[MeasuredLayer]] = {}
    scores = {}
    for scorer in scorers:
        if scorer.statistic not in measured:
            statistics = measure(layers, scorer.statistic, runs, ranks=ranks)
            inputs = {name: stat.prepared() if stat.num_tokens else None for name, stat in statistics.items()}
            measured[scorer.statistic] = [MeasuredLayer(layer, inputs[layer.name]) for layer in layers]
        groups: dict[str, list[MeasuredLayer]] = {} if scorer.roles else {WHOLE: measured[scorer.statistic]}
        for layer in measured[scorer.statistic] if scorer.roles else ():
            groups.setdefault(layer.view.metadata.role, []).append(layer)
        scores[scorer.allocation] = {key: _score(scorer, group, block) for key, group in groups.items()}
    return scores


def _score(scorer: _Scorer, layers: Sequence[MeasuredLayer], block: Block) -> float | None:
    value = scorer.score(layers) if layers else None
    if value is None:
        return None
    if not math.isfinite(value):
        raise ModelError(f"scores of blocks must be finite, got {value} for {block.metadata.name}.")
    return float(value)

"""The loop over the blocks of a model: measure, prune, recover, and go on with the pruned block."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from hf_farms.allocation.plan import Plan
from hf_farms.blocks import Block, BlockSource, LayerView, count_zeros
from hf_farms.config import PruneConfig
from hf_farms.errors import HfFarmsWarning
from hf_farms.processes import ONE_PROCESS, WorkingRanks, folder_of_rank
from hf_farms.progress import Progress
from hf_farms.pruning.calibration_pass import CalibrationPass, warn_of_idle_ranks
from hf_farms.pruning.hidden_states import HiddenStates
from hf_farms.pruning.measuring import LayerStatistic, Run, measure, measurement_passes
from hf_farms.pruning.methods import PruningMethod, pruning_method
from hf_farms.pruning.patterns import Removal
from hf_farms.pruning.recovery import block_config, block_recovery, recovery_stage, train_whole
from hf_farms.pruning.removal_plan import block_targets, prunable_layers
from hf_farms.pruning.sharing import alone, commit, finished_blocks, receive_blocks
from hf_farms.reports import BlockSparsity, DistillationRecord, LayerSparsity, json_converter

__all__ = ["WITHOUT_INPUTS", "prune_blocks"]

# Prunes a layer whose inputs were never seen.
WITHOUT_INPUTS = "magnitude"

# Calibration batches, and sequences that accept a recovery.
Sequences = tuple[Sequence[Mapping[str, Tensor]], Sequence[Mapping[str, Tensor]]]
# Sparsities of the blocks, and the removals of their layers.
Cuts = tuple[Plan, Sequence[Sequence[Removal]]]


def prune_blocks(
    source: BlockSource,
    config: PruneConfig,
    sequences: Sequences,
    cuts: Cuts,
    *,
    folder: Path | None,
    checkpoints: str | Path | None,
    ranks: WorkingRanks,
    progress: Progress,
) -> tuple[list[BlockSparsity], DistillationRecord | None]:
    """Prune all blocks that are not finished, and recover them.

    Args:
        source: the blocks.
        config: method and recovery.
        sequences: calibration batches, and sequences that accept a recovery.
        cuts: sparsities of the blocks, and the removals of their layers.
        folder: for hidden states; None keeps them in memory.
        checkpoints: folder of a recovery that trains the whole model; None writes none.
        ranks: several processes share the work; with a recovery the first one does all of it, and the others get its
            blocks.
        progress: called with every step.

    Returns:
        The records of all blocks, and of the training of the whole model, if there was one.
    """

    def work(ranks: WorkingRanks) -> tuple[list[BlockSparsity], DistillationRecord | None]:
        loop = _Loop(source, config, sequences, cuts, folder=folder, ranks=ranks, progress=progress)
        blocks, dense = loop.run(), loop.dense.hidden
        return blocks, train_whole(source, config, sequences, dense, checkpoints=checkpoints, progress=progress)

    if ranks.count == 1 or not config.recovers:
        return work(ranks)
    # Before any work: the others must be able to read what the first one will have finished.
    finished_blocks(source, ranks)
    result = alone("recovery", lambda: work(ONE_PROCESS), ranks)
    receive_blocks(source, ranks, from_memory=config.trains)
    return result


class _Loop:
    """The blocks one after another, with the hidden states of the pruned and of the dense model in front of the next.

    Arguments are those of `prune_blocks`.

    Attributes:
        dense: the dense model; without batches, if the recovery needs none.
    """

    def __init__(
        self,
        source: BlockSource,
        config: PruneConfig,
        sequences: Sequences,
        cuts: Cuts,
        *,
        folder: Path | None,
        ranks: WorkingRanks,
        progress: Progress,
    ) -> None:
        (batches, acceptance), (targets, _) = sequences, cuts
        self._source, self._config, self._cuts, self._folder, self._ranks = source, config, cuts, folder, ranks
        self._finished = finished_blocks(source, ranks)
        if not config.trains and None not in self._finished:
            batches = acceptance = []
        warn_of_idle_ranks(batches, ranks)
        # The acceptance sequences run along behind the others.
        everything, self._num_batches = [*batches, *acceptance], len(batches)
        hidden = HiddenStates(folder_of_rank(folder, ranks))
        self._data = CalibrationPass(source, everything, hidden, progress, ranks=ranks)
        recovers = config.recovers
        hidden = HiddenStates(folder and folder / "dense")
        self.dense = CalibrationPass(source, everything if recovers else [], hidden, progress)
        if batches:
            _warn_of_few_tokens(source, config, self._data.num_tokens(len(batches)))
        self._whole = block_targets(source, targets, config)
        self._by_layer = any(len(set(roles.values())) > 1 for roles in targets)
        stage = recovery_stage(source, config, self._data.hidden.num_bytes, len(batches)) if batches else None
        self._stages, self._progress = ["prune", *([stage] if stage else [])], progress

    def run(self) -> list[BlockSparsity]:
        """Return the records of all blocks."""
        for stage in self._stages:
            self._progress(stage, 0, len(self._source))
        blocks: list[BlockSparsity] = []
        # Hidden states are needed up to the last block that is not finished yet.
        last = max((i for i, record in enumerate(self._finished) if record is None), default=-1)
        for index, record in enumerate(self._finished):
            if record is None:
                blocks.append(self._prune(index))
                commit(self._source, index, json_converter().unstructure(blocks[-1]), self._ranks)
            else:
                if len(self.dense.hidden) and (index < last or self._config.trains):
                    self.dense.advance(self._source.open_dense(index), index)
                blocks.append(json_converter().structure(record, BlockSparsity))
            if self._num_batches and index < last:
                self._data.advance(self._source.open(index), index)
            for stage in self._stages:
                self._progress(stage, index + 1, len(self._source))
        return blocks

    def _prune(self, index: int) -> BlockSparsity:
        """Prune a block, and recover it."""
        targets, removals = self._cuts
        block = self._source.open(index)
        recovery, runs = block_recovery(block, self._config, self._folder), self._data.runs(block, index)
        # Without recovery there are no acceptance sequences, and several processes share the runs.
        measured, acceptance = runs[: self._num_batches], runs[self._num_batches :]
        if len(self.dense.hidden):
            with recovery.dense_run():
                self.dense.advance(block, index)
        pruned = _prune_block(block, self._whole[index], removals[index], self._config, measured, self._ranks)
        if self._by_layer:
            pruned = _with_targets(pruned, block, targets[index])
        config = block_config(self._config, len(measured))
        return replace(pruned, recovery=recovery.fit(measured, config, acceptance))


def _prune_block(
    block: Block,
    target: float,
    removals: Sequence[Removal],
    config: PruneConfig,
    runs: Sequence[Run],
    ranks: WorkingRanks,
) -> BlockSparsity:
    method = pruning_method(config.method, config, ranks=ranks)
    layers = prunable_layers(block.layers)
    by_name = {layer.name: removal for layer, removal in zip(layers, removals, strict=True)}
    results: dict[str, LayerSparsity] = {}
    for part in measurement_passes(layers, method.statistic) if method.statistic else [layers]:
        measured: dict[str, LayerStatistic] = {}
        if method.statistic:
            measured = measure(part, method.statistic, runs, method.statistic_options, ranks=ranks)
        for layer in part:
            # `pop`: a shared statistic is freed with its last layer.
            results[layer.name] = _prune_layer(layer, by_name[layer.name], method, measured.pop(layer.name, None))
    return _block_sparsity(block, target, [results[layer.name] for layer in layers])


def _prune_layer(
    layer: LayerView, removal: Removal, method: PruningMethod, measured: LayerStatistic | None
) -> LayerSparsity:
    weight, prepared = layer.read(), None
    before = count_zeros(weight)
    if measured is not None and measured.num_tokens == 0:
        method = pruning_method(WITHOUT_INPUTS)
    elif measured is not None:
        prepared = measured.prepared()
    pruned = method.apply(weight, prepared, removal)
    layer.write_(pruned.weight)
    return LayerSparsity(
        name=layer.name,
        num_weights=weight.numel(),
        num_zeros=count_zeros(pruned.weight),
        num_zeros_before=before,
        num_tokens=measured.num_tokens if measured is not None else None,
        damping=getattr(prepared, "damping", None),
        error_reduction=pruned.error_reduction,
        unfinished_rows=pruned.unfinished_rows,
        num_ties=pruned.num_ties,
    )


def _warn_of_few_tokens(source: BlockSource, config: PruneConfig, tokens: int) -> None:
    """Warn where the method's statistic of the widest layer needs more tokens than the calibration data has."""
    statistic = pruning_method(config.method, config).statistic
    layers = [layer for i in range(len(source)) for layer in prunable_layers(source.metadata(i).layers)]
    widest = max((layer for layer in layers if layer.kind == "linear"), key=lambda layer: layer.shape[1], default=None)
    if statistic is not None and widest is not None and tokens < statistic.tokens_needed(widest.shape[1]):
        warnings.warn(
            f"calibration should have at least as many tokens as a layer has inputs, got {tokens} tokens for "
            f"{widest.shape[1]} inputs in {widest.name}. Its Hessian gets more damping; use more or longer sequences.",
            HfFarmsWarning,
            stacklevel=6,
        )


def _with_targets(record: BlockSparsity, block: Block, roles: dict[str, float]) -> BlockSparsity:
    """Add the planned sparsity of each layer."""
    by_name = {layer.name: roles[layer.metadata.role] for layer in prunable_layers(block.layers)}
    return replace(record, layers=tuple(replace(layer, target=by_name[layer.name]) for layer in record.layers))


def _block_sparsity(block: Block, target: float, layers: list[LayerSparsity]) -> BlockSparsity:
    # A block may contain only routers, or only layers shared with another block.
    sparsity = sum(layer.num_zeros for layer in layers) / max(1, sum(layer.num_weights for layer in layers))
    meta = block.metadata
    return BlockSparsity(index=meta.index, name=meta.name, target=target, sparsity=sparsity, layers=tuple(layers))

"""Prune a model block by block: the function `prune`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from hf_farms.allocation.plan import Plan, Scores
from hf_farms.blocks import Block, BlockSource, LayerView, ModelBlockSource, count_zeros
from hf_farms.blocks.model_checks import check_blocks
from hf_farms.config import PruneConfig
from hf_farms.config.checks import check_arguments
from hf_farms.config.effects import given_fields, warn_unused
from hf_farms.data.selection import acceptance_sequences, read_selection
from hf_farms.distributed import ONE_PROCESS, WorkingRanks, folder_of_rank
from hf_farms.errors import HfFarmsWarning, NoEffectWarning
from hf_farms.progress import Progress
from hf_farms.pruning.calibration_pass import Batch, CalibrationPass, calibration_batches, warn_of_idle_ranks
from hf_farms.pruning.checks import check_folders, check_method, check_recovery
from hf_farms.pruning.hidden_states import HiddenStates
from hf_farms.pruning.limits import limit_of
from hf_farms.pruning.measuring import LayerStatistic, Run, measure, measurement_passes
from hf_farms.pruning.methods import PruningMethod, pruning_method
from hf_farms.pruning.named_models import load_named
from hf_farms.pruning.patterns import Removal
from hf_farms.pruning.recovery import (
    block_config,
    block_recovery,
    check_checkpoints,
    few_sequences_note,
    recovery_stage,
    single_sequences,
    train_whole,
    training_note,
)
from hf_farms.pruning.removal_plan import (
    block_targets,
    check_layers,
    plan_removals,
    plan_targets,
    prunable_layers,
)
from hf_farms.pruning.reporting import make_report, sparse_note, unmeasured_note
from hf_farms.pruning.scoring import score_blocks
from hf_farms.pruning.searching import search_sparsities
from hf_farms.pruning.sharing import alone, commit, finished_blocks, receive_blocks
from hf_farms.registries import ALLOCATIONS, RECOVERIES
from hf_farms.reports import BlockSparsity, LayerSparsity, PruneReport, SearchRecord, SpectralReport, json_converter
from hf_farms.spectra.analysis import analyze

__all__ = ["PruneResult", "prune"]

# Prunes a layer whose inputs were never seen.
WITHOUT_INPUTS = "magnitude"


@dataclass(frozen=True)
class PruneResult:
    """Result of `prune`; the model itself is modified in place.

    Attributes:
        report: targets, measured sparsity, spectra before pruning.
        model: the pruned model, modified in place; None for a `BlockSource`.
    """

    report: PruneReport
    model: nn.Module | None = None


def prune(
    model: nn.Module | BlockSource | str | Path,
    config: PruneConfig | None = None,
    *,
    calibration: Iterable[Batch] | None = None,
    spectra: SpectralReport | None = None,
    scores: Scores | Sequence[float | None] | None = None,
    selection: Iterable[Batch] | None = None,
    trials: str | Path | None = None,
    activations: str | Path | None = None,
    checkpoints: str | Path | None = None,
    ranks: WorkingRanks = ONE_PROCESS,
    progress: Progress | None = None,
) -> PruneResult:
    """Set the least important weights of every matrix inside the blocks to zero, in place.

    Embeddings, norms, routers and the head are not modified. Activations of a block are measured with the previous
    blocks already pruned. The total sparsity is met exactly, or as closely as the pattern allows.

    Time: two forward passes of the calibration data through the blocks (one to measure, one to propagate). Memory: its
    hidden states, and the statistics of one block; SparseGPT and `refine="swaps"` need n x n float64 for each distinct
    input of n channels (both together twice that), for experts at most 4 GiB at once. Recovery by submodule: about 13
    more forward passes (one of the dense model, three to record inputs, three for each of three passes of the fit); the
    hidden states of the calibration data four more times, three of them in float32; the dense weights of one block, and
    five times the weights of its attention or of its feed-forward network in float32. `recover="distill"` adds, for
    each pass over the calibration data, a forward and a backward pass of the model, and needs the memory of full
    fine-tuning: the model, gradients and two moments of Adam in float32, the weights before, and the hidden states of
    the dense model.

    Args:
        model: a model; or a hub id, a folder or `demo`, which is loaded, and not written anywhere (for a folder on
            disk, call `prune_checkpoint`); or a `BlockSource`, whose `commit` is called for each finished block.
        config: method, sparsity, pattern, allocation.
        calibration: token ids `(b, n)` or `(n,)`, or mappings of model inputs, each of any length; required by Wanda,
            SparseGPT and recovery. Tokens masked by an `attention_mask` are not counted. None: for a model loaded by
            name, the sequences of `CalibrationConfig()`.
        spectra: spectra of this model, measured with `config.measurement()`; None to measure them now.
        scores: scores of this model's blocks before pruning, for an allocation that needs activations: one for each
            block, or as `score_blocks` returns them; for one that searches, the sparsities of an earlier search. None
            to measure them now.
        selection: data like calibration data: at least four sequences of another text. An allocation searches on the
            first half; about 4,096 tokens of the second, evenly spaced, decide whether the fits of a recovery are kept.
            None: for a model loaded by name, the sequences of `SelectionConfig()`; else a recovery holds out one of
            eight calibration sequences, and fits the others.
        trials: JSON file of the plans that a search tried; the same search continues from it, and another file there
            is refused. None to keep them in memory.
        activations: folder for the hidden states of the calibration data, and a byte per weight during a search; None
            to keep them in memory.
        checkpoints: folder for the checkpoints of a recovery that trains the whole model; the same training continues
            from the last one, and a folder of another is refused. None writes none.
        ranks: with several processes, each has the same model and the same arguments, measures a share of the
            calibration data, and computes some rows of SparseGPT and of `refine`; all get the same weights. A search
            and a recovery are done by the first one.
        progress: called with the stage ("analyze", "capture", "score", "prune", "distill"; of a search "levels",
            "sensitivity", "search", "finalists" and "check"), finished steps and all steps.

    Returns:
        The report (targets, measured sparsity, spectra before pruning) and the model.

    Raises:
        DataError: the method needs calibration data and got none, or token ids exceed the vocabulary.
        OutputError: `checkpoints` holds those of another training.
        ModelError: no blocks, a model that the recovery cannot train, layers that are not matrices or do not fit the
            pattern, NaN in weights or activations (the message names the layer).
    """
    check_arguments(
        prune, config=config, spectra=spectra, trials=trials, activations=activations, checkpoints=checkpoints
    )
    config = config or PruneConfig()
    warn_unused(config)
    notes: tuple[str, ...] = ()
    if isinstance(model, str | Path):
        model, calibration, selection, notes = load_named(model, config, calibration, selection)
    check_blocks(model, also=", a hub id, a folder, 'demo'")
    source = ModelBlockSource(model) if isinstance(model, nn.Module) else model
    check_layers(source, config)
    check_recovery(source, config)
    check_folders(activations, checkpoints)
    batches = calibration_batches(calibration, source, config) if config.needs_calibration else []
    recovers = RECOVERIES[config.recover].needs == "activations"
    if recovers:
        batches = single_sequences(batches)
    if selection is not None and config.needs_selection:
        # The search and the recovery get the same halves, also of a loader that shuffles.
        selection = read_selection(selection, vocabulary=source.vocabulary)
    acceptance: list[dict[str, Tensor]] = []
    if recovers and selection is not None:
        acceptance = acceptance_sequences(selection, calibration=batches, vocabulary=source.vocabulary)
    check_checkpoints(checkpoints, config, [*batches, *acceptance])
    if batches and any(source.finished(index) is None for index in range(len(source))):
        check_method(source, config, batches[0])
    if config.sparsity == 0:
        warnings.warn("sparsity is 0: nothing will be removed.", NoEffectWarning, stacklevel=2)
    tick = progress or (lambda stage, done, total: None)
    allocation, folder = ALLOCATIONS[config.allocation], Path(activations) if activations is not None else None
    if spectra is None and allocation.needs_spectra:
        with given_fields(()):
            spectra = analyze(
                source,
                config.measurement(),
                ranks=ranks,
                progress=lambda done, total: tick("analyze", done, total),
            )
    search: SearchRecord | None = None
    if scores is None and allocation.needs_activations:
        scores = score_blocks(source, config, batches, activations=folder, ranks=ranks, progress=tick)
    elif scores is None and allocation.search is not None:
        search = search_sparsities(
            source,
            config,
            batches,
            selection,
            spectra=spectra,
            folder=folder,
            trials=trials,
            ranks=ranks,
            progress=tick,
        )
        scores = search.sparsities
    targets = plan_targets(source, config, spectra=spectra, scores=scores)
    limit = limit_of(source, config, targets, spectra=spectra, scores=scores)
    removals = plan_removals(source, targets, config)
    # Recoveries need gradients, also for a caller in inference mode.
    gradients = torch.inference_mode(False) if recovers else nullcontext()
    with gradients, source.evaluation(), torch.no_grad():
        measured = batches if recovers or config.measures_inputs else []
        if recovers and ranks.count > 1:
            arguments = source, config, measured, acceptance, folder, targets, removals
            finished_blocks(source, ranks)
            blocks = alone("recovery", lambda: _prune_blocks(*arguments, tick, ONE_PROCESS), ranks)
            receive_blocks(source, ranks)
        else:
            blocks, dense = _prune_blocks(source, config, measured, acceptance, folder, targets, removals, tick, ranks)
            trained = train_whole(source, config, (measured, acceptance), dense, checkpoints=checkpoints, progress=tick)
    layers = [layer for block in blocks for layer in block.layers]
    # A limit that the user set and that cannot hold; the default one is only noted.
    unreachable = limit if PruneConfig.max_sparsity != config.max_sparsity <= config.sparsity else None
    few = few_sequences_note(batches) if recovers and not acceptance else None
    for note in (unmeasured_note(source, layers), sparse_note(layers), unreachable, few):
        if note is not None:
            warnings.warn(note, HfFarmsWarning, stacklevel=2)
    report = make_report(source, config, blocks, spectra, batches, removals, acceptance=acceptance)
    left = training_note(trained, report.acceptance)
    found = (note for note in (limit, few, left) if note is not None)
    searched = search.notes if search else ()
    report = replace(report, search=search, distillation=trained, notes=(*report.notes, *found, *notes, *searched))
    return PruneResult(report, model if isinstance(model, nn.Module) else None)


def _prune_blocks(
    source: BlockSource,
    config: PruneConfig,
    batches: list[dict[str, Tensor]],
    acceptance: list[dict[str, Tensor]],
    folder: Path | None,
    targets: Plan,
    removals: list[list[Removal]],
    tick: Progress,
    ranks: WorkingRanks,
) -> tuple[list[BlockSparsity], HiddenStates]:
    """Return the records of all blocks, and the dense hidden states behind the last one if the recovery trains."""
    finished = finished_blocks(source, ranks)
    if not config.trains and None not in finished:
        batches = acceptance = []
    warn_of_idle_ranks(batches, ranks)
    # The acceptance sequences run along behind the others.
    sequences = [*batches, *acceptance]
    data = CalibrationPass(source, sequences, HiddenStates(folder_of_rank(folder, ranks)), tick, ranks=ranks)
    recovers = RECOVERIES[config.recover].needs == "activations"
    # The same for the dense model.
    dense = CalibrationPass(source, sequences if recovers else [], HiddenStates(folder and folder / "dense"), tick)
    if batches:
        _warn_of_few_tokens(source, config, data.num_tokens(len(batches)))
    blocks, whole = [], block_targets(source, targets, config)
    by_layer = any(len(set(roles.values())) > 1 for roles in targets)
    recover_stage = recovery_stage(source, config, data.hidden.num_bytes) if batches else None
    if recover_stage:
        tick(recover_stage, 0, len(source))
    # Hidden states are needed up to the last block that is not finished yet.
    last = max((i for i, record in enumerate(finished) if record is None), default=-1)
    for index in range(len(source)):
        if (record := finished[index]) is not None:
            if recovers and (index < last or config.trains):
                dense.advance(source.open_dense(index), index)
            blocks.append(json_converter().structure(record, BlockSparsity))
        else:
            block = source.open(index)
            recovery, runs = block_recovery(block, config, folder), data.runs(block, index)
            # Without recovery there are no acceptance sequences, and several processes share the runs.
            acceptance_runs = runs[len(batches) :]
            runs = runs[: len(batches)]
            with recovery.dense_run():
                dense.advance(block, index)
            pruned = _prune_block(block, whole[index], removals[index], config, runs, ranks)
            pruned = _with_targets(pruned, block, targets[index]) if by_layer else pruned
            blocks.append(replace(pruned, recovery=recovery.fit(runs, block_config(config), acceptance_runs)))
            commit(source, index, json_converter().unstructure(blocks[-1]), ranks)
        if batches and index < last:
            data.advance(source.open(index), index)
        tick("prune", index + 1, len(source))
        if recover_stage:
            tick(recover_stage, index + 1, len(source))
    return blocks, dense.hidden


def _prune_block(
    block: Block,
    target: float,
    removals: list[Removal],
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
    pruned, error_reduction, unfinished_rows = method.apply(weight, prepared, removal)
    layer.write_(pruned)
    return LayerSparsity(
        name=layer.name,
        num_weights=weight.numel(),
        num_zeros=count_zeros(pruned),
        num_zeros_before=before,
        num_tokens=measured.num_tokens if measured is not None else None,
        damping=getattr(prepared, "damping", None),
        error_reduction=error_reduction,
        unfinished_rows=unfinished_rows,
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
            stacklevel=4,
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

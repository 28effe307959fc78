"""Prune a model block by block: the function `prune`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from hf_farms.allocation.plan import Scores
from hf_farms.blocks import BlockSource, ModelBlockSource
from hf_farms.blocks.model_checks import check_blocks
from hf_farms.config import PruneConfig
from hf_farms.config.checks import check_arguments
from hf_farms.config.effects import given_fields, warn_unused
from hf_farms.config.rounding import is_rounded_away, warn_rounded_away
from hf_farms.data.selection import acceptance_sequences, read_selection
from hf_farms.errors import HfFarmsWarning, NoEffectWarning
from hf_farms.processes import ONE_PROCESS, WorkingRanks
from hf_farms.progress import Progress
from hf_farms.pruning.block_loop import prune_blocks
from hf_farms.pruning.calibration_pass import Batch, calibration_batches
from hf_farms.pruning.checks import check_folders, check_method, check_recovery
from hf_farms.pruning.limits import dense_of, limit_of
from hf_farms.pruning.named_models import load_named
from hf_farms.pruning.recovery import check_checkpoints, single_sequences
from hf_farms.pruning.recovery_notes import few_sequences_note, few_sequences_to_train_note, training_note
from hf_farms.pruning.removal_plan import check_layers, ineffective_note, plan_removals, plan_targets, role_sizes
from hf_farms.pruning.reporting import make_report, sparse_note, ties_note, unmeasured_note
from hf_farms.pruning.scoring import score_blocks
from hf_farms.pruning.searching import search_sparsities
from hf_farms.registries import ALLOCATIONS
from hf_farms.reports import PruneReport, SearchRecord, SpectralReport
from hf_farms.spectra.analysis import analyze

__all__ = ["PruneResult", "prune"]


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
    input of n channels (both together twice that), for experts at most 4 GiB at once. Recovery by submodule: about 22
    more forward passes (one of the dense model, three to record inputs, three for each of six passes of the fit; with
    96 sequences or more, two passes, so ten); the hidden states of the calibration data four more times, three of them
    in float32; the dense weights of one block, and five times the weights of its attention or of its feed-forward
    network in float32. `recover="distill"` adds, for each pass over the calibration data, a forward and a backward pass
    of the model, and needs the memory of full fine-tuning: the model, gradients and two moments of Adam in float32, the
    weights before, and the hidden states of the dense model.

    Args:
        model: a model; or a hub id, a folder or `demo`, which is loaded, and not written anywhere (for a folder on
            disk, call `prune_checkpoint`); or a `BlockSource`, whose `commit` is called for each finished block.
        config: method, sparsity, pattern, allocation.
        calibration: token ids `(b, n)` or `(n,)`, or mappings of model inputs, each of any length; required by Wanda,
            SparseGPT and recovery. Tokens masked by an `attention_mask` are not counted. None: for a model loaded by
            name, the sequences of `CalibrationConfig()`, without text that it writes.
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
    warn_rounded_away(config)
    notes: tuple[str, ...] = ()
    if isinstance(model, str | Path):
        model, calibration, selection, notes = load_named(model, config, calibration, selection)
    check_blocks(model, also=", a hub id, a folder, 'demo'")
    source = ModelBlockSource(model) if isinstance(model, nn.Module) else model
    check_layers(source, config)
    check_recovery(source, config)
    check_folders(activations, checkpoints)
    batches = calibration_batches(calibration, source, config) if config.needs_calibration else []
    recovers = config.recovers
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
    if (few := few_sequences_to_train_note(len(batches), config)) is not None:
        warnings.warn(few, HfFarmsWarning, stacklevel=2)
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
    sizes = [size for roles in role_sizes(source) for size in roles.values()]
    ineffective = ineffective_note(removals, sizes, config)
    if ineffective is not None and not is_rounded_away(config):
        # Before the long work, which might be of no use.
        warnings.warn(ineffective, NoEffectWarning, stacklevel=2)
    # Recoveries need gradients, also for a caller in inference mode.
    gradients = torch.inference_mode(False) if recovers else nullcontext()
    with gradients, source.evaluation(), torch.no_grad():
        measured = batches if recovers or config.measures_inputs else []
        blocks, trained = prune_blocks(
            source,
            config,
            (measured, acceptance),
            (targets, removals),
            folder=folder,
            checkpoints=checkpoints,
            ranks=ranks,
            progress=tick,
        )
    layers = [layer for block in blocks for layer in block.layers]
    # A limit that the user set and that cannot hold; the default one is only noted.
    unreachable = limit if PruneConfig.max_sparsity != config.max_sparsity <= config.sparsity else None
    few = few_sequences_note(batches) if recovers and not acceptance else None
    for note in (unmeasured_note(source, layers), sparse_note(layers), unreachable, few):
        if note is not None:
            warnings.warn(note, HfFarmsWarning, stacklevel=2)
    report = make_report(source, config, blocks, spectra, batches, removals, acceptance=acceptance)
    left = training_note(trained, report.acceptance)
    dense = dense_of(source, config, targets)
    found = (note for note in (limit, dense, few, left, ties_note(report)) if note is not None)
    searched = search.notes if search else ()
    report = replace(report, search=search, distillation=trained, notes=(*report.notes, *found, *notes, *searched))
    return PruneResult(report, model if isinstance(model, nn.Module) else None)

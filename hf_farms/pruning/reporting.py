"""Build the PruneReport of a model from the records of its blocks, with notes about the run."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from torch import Tensor

from hf_farms.allocation.notes import spread_note
from hf_farms.blocks import BlockSource
from hf_farms.config import PruneConfig
from hf_farms.pruning.patterns import Removal
from hf_farms.pruning.recovery_notes import recovery_notes
from hf_farms.pruning.refining import DAMPING
from hf_farms.pruning.removal_plan import pattern_note
from hf_farms.pruning.swaps import MAX_ROUNDS
from hf_farms.registries import METHODS
from hf_farms.reports import (
    AcceptanceRecord,
    BlockSparsity,
    CalibrationRecord,
    LayerSparsity,
    PruneReport,
    SpectralReport,
)

__all__ = ["make_report", "sparse_note", "ties_note", "unmeasured_note"]

# A model counts as sparse before pruning if at least this share of its zeros was already there.
SPARSE_BEFORE = 0.5


def make_report(
    source: BlockSource,
    config: PruneConfig,
    blocks: list[BlockSparsity],
    spectra: SpectralReport | None,
    batches: list[dict[str, Tensor]],
    removals: list[list[Removal]],
    *,
    acceptance: Sequence[Mapping[str, Tensor]] = (),
) -> PruneReport:
    """Build the report of a pruned model.

    Args:
        source: the pruned model.
        config: options of the pruning.
        blocks: records of all blocks, including those of earlier runs.
        spectra: spectra before pruning, if measured.
        batches: calibration data; empty if the method needs none.
        removals: planned removals of every layer of every block.
        acceptance: sequences that accepted the fits of a recovery; empty: none of a selection text.
    """
    accepted_on = _acceptance(acceptance) if acceptance else None
    layers = [layer for block in blocks for layer in block.layers]
    parameters, zeros = source.count_parameters()
    notes = [
        spread_note(spectra, config) if spectra is not None else None,
        pattern_note(removals, [x.num_weights for x in layers], config),
        *_layer_notes(source, layers, config),
        _unfinished_note(layers),
        *recovery_notes(blocks, accepted_on),
    ]
    return PruneReport(
        model=source.name,
        model_type=source.model_type,
        config=config,
        dtype=source.dtype,
        blocks=tuple(blocks),
        sparsity=sum(x.num_zeros for x in layers) / sum(x.num_weights for x in layers),
        parameter_sparsity=zeros / parameters,
        num_parameters=parameters,
        before=spectra,
        calibration=_calibration(batches, layers) if batches else None,
        acceptance=accepted_on,
        notes=tuple(note for note in notes if note),
    )


def _calibration(batches: list[dict[str, Tensor]], layers: list[LayerSparsity]) -> CalibrationRecord:
    tokens_or_masks = [batch.get("attention_mask", batch.get("input_ids")) for batch in batches]
    return CalibrationRecord(
        config=None,
        num_sequences=sum(len(next(iter(batch.values()))) for batch in batches),
        # Other inputs (images) become tokens inside the model.
        num_tokens=max(layer.num_tokens or 0 for layer in layers)
        if any(tokens is None for tokens in tokens_or_masks)
        else sum(
            int(tokens.sum()) if "attention_mask" in batch else tokens.numel()
            for batch, tokens in zip(batches, tokens_or_masks, strict=True)
            if tokens is not None
        ),
    )


def _acceptance(batches: Sequence[Mapping[str, Tensor]]) -> AcceptanceRecord:
    counts = [
        int(batch["attention_mask"].sum()) if "attention_mask" in batch else next(iter(batch.values())).numel()
        for batch in batches
    ]
    return AcceptanceRecord(num_sequences=len(batches), num_tokens=sum(counts))


def _layer_notes(source: BlockSource, layers: list[LayerSparsity], config: PruneConfig) -> list[str]:
    """Describe layers without inputs, sparse models, experts with few tokens, and damped Hessians."""
    notes = []
    kinds = {layer.name: layer.kind for i in range(len(source)) for layer in source.metadata(i).layers}
    if unmeasured := unmeasured_note(source, layers):
        notes.append(unmeasured)
    if sparse := sparse_note(layers):
        notes.append(sparse)
    experts = [x.num_tokens for x in layers if kinds[x.name] == "expert" and x.num_tokens is not None]
    if experts:
        notes.append(
            f"Expert matrices were measured on {min(experts)} to {max(experts)} calibration tokens, median "
            f"{statistics.median(experts):g}."
        )
    if without := experts.count(0):
        notes.append(
            f"{without} of {len(experts)} expert matrices got no calibration tokens and were pruned by magnitude."
        )
    if few := _damping_note(layers, config):
        notes.append(few)
    return notes


def _damping_note(layers: list[LayerSparsity], config: PruneConfig) -> str | None:
    """Count the layers whose products needed more damping than with enough tokens; None if there are none."""
    has_hessian = "damping" in METHODS[config.method].options
    usual = config.damping if has_hessian else DAMPING
    damped = [x for x in layers if x.damping is not None and x.damping > usual]
    if not damped:
        return None
    most = max(damped, key=lambda x: x.damping or 0)
    count, added = f"{len(damped)} of {len(layers)}", f"{most.damping:.3g}"
    if has_hessian:
        return (
            f"{count} Hessians had fewer tokens than inputs, or were singular: up to {added} of the mean diagonal was "
            f"added (in {most.name}) instead of {usual:g}."
        )
    return (
        f"{count} layers were refined on fewer tokens than inputs: up to {added} of each diagonal entry of their "
        f"products was added (in {most.name}) instead of {usual:g} or less."
    )


def _unfinished_note(layers: list[LayerSparsity]) -> str | None:
    """Count the rows that a refinement left at its limit of rounds; None if there are none."""
    counts = [layer.unfinished_rows for layer in layers if layer.unfinished_rows]
    if not counts:
        return None
    return (
        f"{sum(counts):,} rows in {len(counts)} of {len(layers)} layers were left at the limit of {MAX_ROUNDS} rounds "
        "of swaps: more swaps may reduce their error."
    )


def ties_note(report: PruneReport) -> str | None:
    """Describe weights whose choice may depend on the number of processes; None if there are none, or none counted."""
    if not report.num_ties:
        return None
    return (
        f"{report.num_ties:,} weights were kept with the score of a removed one, but for rounding: another number of "
        "processes may choose others there."
    )


def sparse_note(layers: list[LayerSparsity]) -> str | None:
    """Describe a model that was already sparse before pruning; None if it was dense."""
    before = sum(layer.num_zeros_before or 0 for layer in layers)
    if before == 0 or before < SPARSE_BEFORE * sum(layer.num_zeros for layer in layers):
        return None
    share = before / sum(layer.num_weights for layer in layers)
    return (
        f"{share:.2%} of the weights of the pruned layers were zero before: little or nothing was removed, and dense "
        "refers to that sparse model here."
    )


def unmeasured_note(source: BlockSource, layers: list[LayerSparsity]) -> str | None:
    """Describe linear layers (not experts) that were pruned by magnitude because no inputs were seen; None if none."""
    linear = {x.name for i in range(len(source)) for x in source.metadata(i).layers if x.kind == "linear"}
    names = [layer.name for layer in layers if layer.num_tokens == 0 and layer.name in linear]
    if not names:
        return None
    return f"{len(names)} layers, first {names[0]}, got no visible inputs and were pruned by magnitude."

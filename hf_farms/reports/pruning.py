"""A pruned model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

from hf_farms.config import CalibrationConfig, PruneConfig, SelectionConfig
from hf_farms.reports.base import Report
from hf_farms.reports.evaluation import PerplexityRecord, TaskRecord
from hf_farms.reports.search import SearchRecord
from hf_farms.reports.spectral import BlockSpectrum, SpectralReport

__all__ = [
    "AcceptanceRecord",
    "BaseModelRecord",
    "BlockSparsity",
    "CalibrationRecord",
    "DistillationRecord",
    "LayerSparsity",
    "PruneReport",
    "RecoveredPart",
    "acceptance_text",
]


@dataclass(frozen=True, kw_only=True)
class LayerSparsity:
    """Zeros of one layer, counted after pruning.

    Attributes:
        name: of the layer.
        num_weights: all of them.
        num_zeros: zeros among them.
        num_tokens: calibration tokens that it was multiplied with; None where the method needs none. An expert that
            got none was pruned by magnitude.
        damping: of the Hessian, in units of its mean diagonal, or of the products of `refine`, in units of each
            diagonal entry; None where there are none.
        num_zeros_before: zeros already present before pruning; None if not counted.
        target: planned sparsity; None: all layers of a block have that of the block.
        error_reduction: share by which `refine` reduced the squared output error on the calibration data; None if it
            was not refined.
        unfinished_rows: rows that `refine` left at its limit of rounds, so that more swaps may reduce their error; None
            if it was not refined.
        num_ties: weights that were kept with the score of a removed one, but for rounding: another number of processes
            may choose others there. Counted on several processes, where scores alone decide; else None.
    """

    name: str
    num_weights: int
    num_zeros: int
    num_tokens: int | None = None
    damping: float | None = None
    num_zeros_before: int | None = None
    target: float | None = None
    error_reduction: float | None = None
    unfinished_rows: int | None = None
    num_ties: int | None = None


@dataclass(frozen=True, kw_only=True)
class RecoveredPart:
    """Fit of the kept weights of attention, feed-forward network or a whole block to the dense model.

    Errors are those of the output on sequences that nothing is fitted to, of the selection text or held out of the
    calibration data: squared, relative to the variance of the output with which the hidden states would be those of the
    dense model.

    Attributes:
        name: of the module.
        error_before: with the weights that the pruning method left.
        error: with the fitted weights; None if it is not finite.
        accepted: whether the model has the fitted weights: only where they have the smaller error.
    """

    name: str
    error_before: float
    error: float | None
    accepted: bool

    @property
    def final_error(self) -> float:
        """The error of the weights that the model has."""
        return self.error if self.accepted and self.error is not None else self.error_before


@dataclass(frozen=True, kw_only=True)
class DistillationRecord:
    """Training of the kept weights of the whole model: KL(dense || pruned) of its predictions, in nats per token.

    The KL is measured on the acceptance text, or without one on calibration sequences that are held out.

    Attributes:
        divergence_before: with the weights that pruning, and the recovery of single blocks, left.
        divergence: with the trained weights; None if it is not finite.
        accepted: whether the model has the trained weights: only if their KL is lower.
        steps: sequences that were fitted, each as often as there were passes.
    """

    divergence_before: float
    divergence: float | None
    accepted: bool
    steps: int

    @property
    def final_divergence(self) -> float:
        """The KL of the weights that the model has."""
        return self.divergence if self.accepted and self.divergence is not None else self.divergence_before


@dataclass(frozen=True, kw_only=True)
class BlockSparsity:
    """Sparsity of one block: planned (`target`), and counted after pruning (`sparsity`).

    Attributes:
        index: of the block.
        name: of the block.
        target: planned sparsity.
        sparsity: measured sparsity.
        layers: zeros of each layer.
        recovery: fits of the kept weights; empty without recovery.
    """

    index: int
    name: str
    target: float
    sparsity: float
    layers: tuple[LayerSparsity, ...]
    recovery: tuple[RecoveredPart, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CalibrationRecord:
    """The text that activations were measured on."""

    config: CalibrationConfig | None
    num_sequences: int
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class AcceptanceRecord:
    """The part of the selection text that decided which fits of a recovery were kept.

    Attributes:
        num_sequences: its sequences.
        num_tokens: their tokens.
        config: the selection text; None: batches of the caller.
    """

    num_sequences: int
    num_tokens: int
    config: SelectionConfig | None = None


def acceptance_text(record: AcceptanceRecord | None) -> str:
    """Return the words for the sequences on which the errors of a recovery were measured."""
    if record is None:
        return "calibration sequences that were held out"
    return f"{record.num_tokens:,} tokens of the selection text that nothing was fitted to"


@dataclass(frozen=True, kw_only=True)
class BaseModelRecord:
    """License and origin of the dense model, from the Hub or its folder, for derived models.

    Attributes:
        repo_id: on the Hub; of a folder its name.
        revision: commit that was used.
        license: identifier, such as `apache-2.0` or `llama3`; None: the card names none.
        license_name: of a license that has no identifier.
        license_link: where its text is.
        gated: whether conditions must be accepted to get it.
        languages: codes.
        pipeline_tag: such as `text-generation`.
        files: names of the license files (LICENSE, USE_POLICY, NOTICE) that a copy must carry.
        card_read: whether the card could be read; otherwise the license is unknown.
        local: whether it is a folder and not on the Hub.
    """

    repo_id: str
    revision: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    gated: bool = False
    languages: tuple[str, ...] = ()
    pipeline_tag: str | None = None
    files: tuple[str, ...] = ()
    card_read: bool = True
    local: bool = False


@dataclass(frozen=True, kw_only=True)
class PruneReport(Report):
    """The settings and the results of a prune.

    Attributes:
        model: hub id, folder name or class name of the dense model.
        model_type: `config.model_type`, or the class name.
        config: method, sparsity, allocation and measurement.
        dtype: of the checkpoint.
        blocks: target and measured sparsity of each block.
        sparsity: measured, of all pruned layers together.
        parameter_sparsity: measured, of all parameters of the model.
        num_parameters: all parameters of the model, tied ones once.
        before: spectra of the dense model.
        after: spectra of the pruned model; None if not measured.
        calibration: None where the method needs none.
        acceptance: the text that accepted the fits of a recovery; None: without one, or held out calibration sequences.
        distillation: the training of the whole pruned model; None without one.
        search: plans that were tried, of an allocation that searches.
        perplexity: None if not measured.
        base: what the Hub, or its folder, says of the dense model; None: nothing is known.
        tasks: results of lm-eval.
        command: the command line of the run, if any.
        notes: what a reader must know.
    """

    shared: ClassVar[bool] = True

    model: str
    model_type: str
    config: PruneConfig
    dtype: str
    blocks: tuple[BlockSparsity, ...]
    sparsity: float
    parameter_sparsity: float
    num_parameters: int
    before: SpectralReport | None = None
    after: SpectralReport | None = None
    calibration: CalibrationRecord | None = None
    acceptance: AcceptanceRecord | None = None
    distillation: DistillationRecord | None = None
    search: SearchRecord | None = None
    perplexity: PerplexityRecord | None = None
    base: BaseModelRecord | None = None
    tasks: tuple[TaskRecord, ...] = ()
    command: str | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        # A report says what was done, whatever the defaults of a later version are.
        sequences = self.calibration.num_sequences if self.calibration is not None else 1
        object.__setattr__(self, "config", self.config.settled(sequences))

    @property
    def num_ties(self) -> int | None:
        """Weights that were kept with the score of a removed one, but for rounding; None if no layer counted them."""
        counts = [layer.num_ties for block in self.blocks for layer in block.layers if layer.num_ties is not None]
        return sum(counts) if counts else None

    def recovery_errors(self) -> tuple[float, float] | None:
        """Return the median errors of the recovered parts, before and after; None without recovery."""
        parts = [part for block in self.blocks for part in block.recovery]
        if not parts:
            return None
        return median(part.error_before for part in parts), median(part.final_error for part in parts)

    def blocks_with_spectra(self) -> Iterator[tuple[BlockSparsity, BlockSpectrum | None, BlockSpectrum | None]]:
        """Yield every block with its spectrum before and after pruning; None where it was not measured."""
        before = {block.index: block for block in self.before.blocks} if self.before else {}
        after = {block.index: block for block in self.after.blocks} if self.after else {}
        for block in self.blocks:
            yield block, before.get(block.index), after.get(block.index)

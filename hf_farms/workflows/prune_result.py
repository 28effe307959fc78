"""The last stage of a prune: prune the model into `DIR.partial`, measure it, and keep the better of two results."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hf_farms.blocks import BlockSource, StreamedBlockSource
from hf_farms.errors import HfFarmsWarning, ModelError
from hf_farms.files.atomic_writes import write_text
from hf_farms.output.checkpoint import CheckpointWriter
from hf_farms.processes import from_first_rank
from hf_farms.progress import Progress, one_stage
from hf_farms.pruning.pruner import prune
from hf_farms.pruning.sharing import commit
from hf_farms.reports import PruneReport, SpectralReport, json_converter
from hf_farms.spectra.analysis import analyze
from hf_farms.workflows.prune_files import GENERATION
from hf_farms.workflows.recovered_choice import UNIFORM_PERPLEXITY
from hf_farms.workflows.texts import load_nll

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from hf_farms.allocation.plan import Scores
    from hf_farms.loading.opening import LoadedModel
    from hf_farms.metrics.nll import TextNll
    from hf_farms.output.folder import OutputFolder
    from hf_farms.output.recipe import Recipe
    from hf_farms.workflows.recovered_choice import Comparison, RecoveredChoice
    from hf_farms.workflows.texts import EvaluationText

__all__ = ["TAKEN_NAME", "PrunedResult", "ResultStage", "activations_folder", "block_writer"]

# In the state folder of unfinished work: why uniform sparsity took the place of the plan.
TAKEN_NAME = "uniform_taken.json"


@dataclass(frozen=True, kw_only=True)
class PrunedResult:
    """What was written to `DIR.partial`.

    Attributes:
        report: of the prune.
        nll: of the evaluation text; None without one, or if it is not finite.
        note: the comparison with uniform sparsity; None: there was none.
        uniform: whether the result is uniform sparsity in place of the plan of a search.
    """

    report: PruneReport
    nll: TextNll | None
    note: str | None = None
    uniform: bool = False


class ResultStage:
    """Prune the model into `DIR.partial`, and measure it.

    Args:
        recipe: of the prune.
        loaded: the dense model.
        output: the folder.
        text: the evaluation text, if there is one.
        choice: compares a plan of a search with uniform sparsity.
        selection: the selection text; empty: none.
        left: files of the model that the result does not get.
        progress: called with every step.
    """

    def __init__(
        self,
        recipe: Recipe,
        loaded: LoadedModel,
        output: OutputFolder,
        *,
        text: EvaluationText | None,
        choice: RecoveredChoice,
        selection: Sequence[Tensor],
        left: Sequence[str],
        progress: Progress,
    ) -> None:
        self._recipe, self._loaded, self._output, self._text = recipe, loaded, output, text
        self._choice, self._selection, self._left, self._progress = choice, selection, left, progress

    def make(
        self,
        batches: Sequence[Tensor],
        spectra: SpectralReport,
        scores: Scores | Sequence[float | None] | None,
        *,
        uniform: TextNll | None,
    ) -> PrunedResult:
        """Prune the model, and compare it with uniform sparsity; a killed run goes on where it stopped.

        Args:
            batches: calibration data.
            spectra: of the dense model.
            scores: of the allocation.
            uniform: NLL of the baseline, if it was measured.
        """
        output = self._output
        taken = output.load_saved(TAKEN_NAME, _load_text)
        if taken is None:
            report = self._prune(batches, spectra, scores)
            nll, fault = self._nll()
            compared = self._choice.compare(self._loaded) if nll is not None else None
            better = compared.uniform_is_better if compared else fault is not None and uniform is not None
            if not (better and self._choice.keeps_uniform(self._loaded)):
                self._choice.forget()
                if fault is not None:
                    warnings.warn(fault, HfFarmsWarning, stacklevel=2)
                return PrunedResult(report=report, nll=nll, note=compared.sentence() if compared else None)
            reason = _reason(compared, nll)
            taken = output.load_or_compute(TAKEN_NAME, lambda: reason, _save_text, _load_text)
        # A run that goes on may leave out the baseline that the earlier one measured.
        uniform = uniform or output.load_saved(UNIFORM_PERPLEXITY, load_nll)
        return PrunedResult(report=self._take_uniform(batches, spectra), nll=uniform, note=taken, uniform=True)

    def _take_uniform(self, batches: Sequence[Tensor], spectra: SpectralReport) -> PruneReport:
        """Put the blocks with uniform sparsity in place of those of the plan."""
        writer = self._writer()
        from_first_rank(lambda: writer.adopt(self._choice.uniform_writer(self._loaded)), self._output.ranks)
        self._choice.forget()
        with warnings.catch_warnings():
            # The same as of the plan.
            warnings.simplefilter("ignore", HfFarmsWarning)
            return self._prune(batches, spectra, [self._recipe.prune.sparsity] * len(self._loaded.source))

    def _prune(
        self, batches: Sequence[Tensor], spectra: SpectralReport, scores: Scores | Sequence[float | None] | None
    ) -> PruneReport:
        """Prune the model into `DIR.partial`, and measure its spectra again."""
        loaded, output, config = self._loaded, self._output, self._recipe.prune
        source = loaded.source
        writer = self._writer()
        # Blocks that are trained afterwards: a run that is killed starts the training from them again.
        pruned = output.state / "pruned"
        first = block_writer(loaded, pruned, records=pruned / "records") if config.trains else writer
        unfinished = any(first.record(index) is None for index in range(len(source)))
        recovers = config.recovers
        source.attach(first, keep_dense=recovers and (unfinished or config.trains))
        report = prune(
            source,
            config,
            calibration=batches,
            spectra=spectra,
            scores=scores,
            selection=self._selection or None,
            activations=activations_folder(source, output),
            checkpoints=output.state / "distill" if config.trains else None,
            ranks=output.ranks,
            progress=self._progress,
        ).report
        if config.trains:
            source.results = writer
            for block in report.blocks:
                commit(source, block.index, json_converter().unstructure(block), output.ranks)
        # Of the files that are left out, all but the generation config make the tokenizer.
        tokenizer = None if set(self._left) - {GENERATION} else loaded.tokenizer
        names = [source.metadata(index).name for index in range(len(source))]
        from_first_rank(lambda: writer.finish(tokenizer, names), output.ranks)
        if GENERATION in self._left and output.ranks.index == 0:
            (output.partial / GENERATION).unlink(missing_ok=True)
        tick = one_stage(self._progress, "Measuring spectra again")
        recipe = self._recipe
        seen = replace(report.calibration, config=recipe.calibration) if report.calibration else None
        accepted = replace(report.acceptance, config=recipe.selection) if report.acceptance else None
        after = analyze(source, config.measurement(), ranks=output.ranks, progress=tick)
        return replace(report, model=recipe.model, after=after, calibration=seen, acceptance=accepted)

    def _writer(self) -> CheckpointWriter:
        return block_writer(self._loaded, self._output.partial, records=self._output.state / "blocks")

    def _nll(self) -> tuple[TextNll | None, str | None]:
        """Measure the NLL of the pruned model; None, with a sentence, if it is not finite."""
        if self._text is None:
            return None, None
        try:
            with self._output.ranks.failing_together():
                nll = self._text.measure(self._loaded, self._progress, "Pruned perplexity", self._output.ranks)
        except ModelError as error:
            return None, f"The pruned model has no perplexity: {error}"
        if math.isfinite(nll.perplexity):
            return nll, None
        return None, "The pruned model has no finite perplexity: too much was removed."


def _reason(compared: Comparison | None, nll: TextNll | None) -> str:
    """Return the note of a result that has uniform sparsity in place of a plan."""
    if compared is None or nll is None:
        return "With the plan of the search the perplexity is not finite: the result has uniform sparsity."
    text = compared.sentence(taken=True)
    return f"{text} With the plan of the search the perplexity of the evaluation text was {nll.perplexity:.2f}."


def block_writer(loaded: LoadedModel, folder: Path, *, records: Path) -> CheckpointWriter:
    """Return the writer of a pruned model."""
    return CheckpointWriter(loaded.model, folder, len(loaded.source), records=records, absent=loaded.absent)


def activations_folder(source: BlockSource, output: OutputFolder) -> Path | None:
    """Return the folder for the hidden states of the calibration data; None keeps them in memory."""
    return output.state / "activations" if isinstance(source, StreamedBlockSource) else None


def _save_text(text: str, path: Path) -> None:
    write_text(path, json.dumps(text) + "\n")


def _load_text(path: Path) -> str:
    return str(json.loads(path.read_text(encoding="utf-8")))

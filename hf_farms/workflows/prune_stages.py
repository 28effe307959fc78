"""The stages of a prune; the result of a finished stage is loaded from `DIR.partial`."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

from hf_farms.blocks import BlockSource, StreamedBlockSource
from hf_farms.config import PruneConfig
from hf_farms.data.selection import ACCEPTANCE_TOKENS
from hf_farms.files.atomic_writes import write_text
from hf_farms.loading.opening import load_model
from hf_farms.metrics.nll import is_causal
from hf_farms.output.fingerprint import fingerprint
from hf_farms.output.local_paths import save_local_paths
from hf_farms.output.merging import merge_shards
from hf_farms.processes import from_first_rank
from hf_farms.progress import Progress, one_stage
from hf_farms.pruning.checks import check_method
from hf_farms.pruning.recovery import training_disk_bytes
from hf_farms.pruning.recovery_notes import less_trained_note
from hf_farms.pruning.removal_plan import plan_removals, plan_targets
from hf_farms.pruning.scoring import score_blocks
from hf_farms.registries import ALLOCATIONS
from hf_farms.reports import PruneReport, SpectralReport
from hf_farms.spectra.analysis import analyze
from hf_farms.workflows.baseline import uniform_nll
from hf_farms.workflows.default_text import decide_text
from hf_farms.workflows.prune_estimate import estimated_time
from hf_farms.workflows.prune_files import describe, left_out, with_license
from hf_farms.workflows.prune_plan import PrunePlan
from hf_farms.workflows.prune_result import TAKEN_NAME, ResultStage, activations_folder, block_writer
from hf_farms.workflows.recovered_choice import RecoveredChoice
from hf_farms.workflows.selection import SelectionText
from hf_farms.workflows.text_lengths import checked_before_weights, texts_of
from hf_farms.workflows.texts import (
    WRITTEN_NAME,
    Calibration,
    EvaluationText,
    calibration_passages,
    perplexity_record,
    same_text_note,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from hf_farms.allocation.plan import Scores
    from hf_farms.metrics.nll import TextNll
    from hf_farms.output.folder import OutputFolder
    from hf_farms.output.recipe import Recipe

__all__ = ["PruneStages"]

NOT_COMPARED = (
    "The result was not compared with uniform sparsity after the whole recovery, for lack of a baseline: with one, "
    "uniform sparsity is the result where it is better."
)


class PruneStages:
    """The stages of a prune; the result of a finished stage is loaded from `DIR.partial`.

    Args:
        plan: of `plan_prune`.
        progress: called with every step.
    """

    def __init__(self, plan: PrunePlan, progress: Progress) -> None:
        recipe, self._output = plan.recipe, plan.output
        self._progress, self._ranks = progress, plan.output.ranks
        writes_itself = recipe.prune.needs_calibration and recipe.calibration.generates
        self._loaded = load_model(
            plan.model,
            **asdict(replace(plan.load, device=plan.load.device or self._ranks.device)),
            # Copied to the result even if it is not needed.
            tokenizer=recipe.needs_tokenizer or None,
            head=recipe.evaluation.source is not None or writes_itself or recipe.prune.searches or recipe.prune.trains,
            before_weights=checked_before_weights(texts_of(recipe)),
        )
        check_method(self._loaded.source, recipe.prune)
        self._text = EvaluationText(recipe.evaluation, self._loaded) if recipe.evaluation.source is not None else None
        self._passages = calibration_passages(recipe, self._loaded)
        self._selection = SelectionText(recipe, self._loaded)
        evaluated = self._text.ids[: self._text.num_tokens] if self._text is not None else None
        self._selection.check_apart(self._passages[0], evaluated)
        self._plan, self._notes = decide_text(plan, self._loaded, self._was_begun)
        self._recipe = recipe = self._plan.recipe
        written = from_first_rank(
            lambda: (self._output.state / WRITTEN_NAME).exists() and self._was_begun(recipe), self._ranks
        )
        self._calibration = Calibration(recipe, self._loaded, self._passages, written=written)
        self._choice = RecoveredChoice(recipe.prune, self._selection.batches, self._output, progress)
        self._result = ResultStage(
            recipe,
            self._loaded,
            self._output,
            text=self._text,
            choice=self._choice,
            selection=self._selection.batches,
            left=left_out(plan.model),
            progress=progress,
        )

    def finish(
        self, *, repo_id: str | None, command: str | None, on_estimate: Callable[[str], None] | None = None
    ) -> PruneReport:
        """Run all stages and rename the folder."""
        output, recipe = self._output, self._recipe
        training = training_disk_bytes(self._loaded.source, recipe.prune)
        output.check_space(self._bytes_needed() + self._selection.bytes_needed + training)
        partial = self._begin()
        if on_estimate is not None and (estimate := self._estimate()) is not None:
            on_estimate(estimate)
        # When the shards are merged, single blocks cannot be read any more.
        report = output.load_or_compute(
            "report.json", lambda: self._report(partial), lambda report, path: report.save(path), PruneReport.load
        )
        report = replace(report, command=command)
        from_first_rank(lambda: self._write(partial, report, repo_id), self._ranks)
        return report

    def _report(self, partial: Path) -> PruneReport:
        """Run all stages that measure and prune."""
        output, text, recipe = self._output, self._text, self._recipe
        spectra = self._spectra()
        base = from_first_rank(lambda: with_license(self._plan.model, partial), self._ranks)
        dense = text.measure_once(self._loaded, self._progress, "Dense perplexity", output) if text else None
        batches, notes = self._calibration.batches(output, self._progress)
        # Passages are enough to rank plans, and a search over more takes several times as long.
        search = self._selection.search(
            recipe.prune, self._calibration.known or batches, spectra=spectra, output=output, progress=self._progress
        )
        scores = (
            list(search.sparsities)
            if search is not None
            else _scores(self._loaded.source, recipe.prune, batches, output, self._progress)
        )
        even = _is_even(self._loaded.source, recipe.prune, spectra, scores)
        uniform = None if even else self._uniform(batches)
        result = self._result.make(batches, spectra, scores, uniform=uniform)
        report, pruned = result.report, result.nll
        if even and self._plan.baseline and recipe.prune.allocation != "uniform":
            uniform = pruned
        if search is not None and result.uniform:
            search = replace(search, taken="uniform")
        if self._choice.can_take_uniform and not even and uniform is None and result.note is None:
            result = replace(result, note=NOT_COMPARED)
        texts = (*(text.notes if text else ()), *same_text_note(recipe))
        if text and pruned is None:
            texts = (*texts, "The perplexity of the pruned model is not finite.")
        less_trained = less_trained_note(spectra, recipe.prune, can_search=is_causal(self._loaded.model))
        return replace(
            report,
            perplexity=perplexity_record(recipe.evaluation, report.dtype, dense=dense, pruned=pruned, uniform=uniform),
            search=search,
            base=base,
            notes=(
                *self._loaded.notes,
                *self._notes,
                *report.notes,
                *notes,
                *self._selection.notes,
                *(search.notes if search is not None else ()),
                *((result.note,) if result.note is not None else ()),
                *texts,
                *((less_trained,) if less_trained is not None else ()),
                *spectra.notes,
            ),
        )

    def _write(self, partial: Path, report: PruneReport, repo_id: str | None) -> None:
        """Merge the shards, write everything else, and rename the folder."""
        state = self._output.state
        shards = block_writer(self._loaded, partial, records=state / "blocks").shards
        merge_shards(partial, state / "merged", shards, progress=one_stage(self._progress, "Merging shards"))
        describe(partial, self._recipe, report, repo_id)
        self._output.finish()
        save_local_paths(self._output.path, self._recipe.places())

    def _was_begun(self, recipe: Recipe) -> bool:
        return self._output.was_begun_with(recipe.flat(), lambda: self._data)

    @cached_property
    def _data(self) -> dict[str, object]:
        """Fingerprint of all but the settings; for the first process alone."""
        tokens = {"calibration": self._passages[0], "evaluation": [self._text.ids] if self._text else []}
        if self._selection.batches:
            tokens["selection"] = self._selection.batches
        return fingerprint(weights=self._loaded.weights, tokens=tokens, device=self._loaded.source.device.type)

    def _begin(self) -> Path:
        flat = self._recipe.flat()
        return from_first_rank(lambda: self._output.resume_or_start({**flat, **self._data}), self._ranks)

    def _estimate(self) -> str | None:
        """Return one line about the time of the stages that are left; None for short work."""
        return estimated_time(
            self._plan,
            self._loaded.source,
            calibration=self._calibration,
            evaluation=self._text,
        )

    def _bytes_needed(self) -> int:
        """Bytes on disk: the weights, and of a streamed model the hidden states of the calibration data.

        The baseline is streamed whatever the model is; its weights are gone before those of the result are written,
        unless both are compared.
        """
        source = self._loaded.source
        weights = sum(parameter.nbytes for parameter in source.model.parameters())
        compares = self._text is not None and self._plan.baseline and self._choice.can_take_uniform
        if compares and not (self._output.state / TAKEN_NAME).exists():
            weights *= 2
        if not isinstance(source, StreamedBlockSource) and not self._plan.baseline:
            return weights
        recovers = self._recipe.prune.recovers
        tokens = self._calibration.num_tokens + (ACCEPTANCE_TOKENS if recovers else 0)
        size = tokens * int(getattr(source.config, "hidden_size", 0))
        itemsize = self._loaded.model.dtype.itemsize
        # A recovery keeps the hidden states of the dense model, inputs of a submodule, its targets, and the stream of
        # the dense model after each of two submodules, the last three in float32.
        return weights + size * (itemsize + (2 * itemsize + 3 * 4 if recovers else 0))

    def _spectra(self) -> SpectralReport:
        measurement, tick = self._recipe.prune.measurement(), one_stage(self._progress, "Measuring spectra")
        return self._output.load_or_compute(
            "spectra.json",
            lambda: analyze(self._loaded.source, measurement, ranks=self._ranks, progress=tick),
            SpectralReport.save,
            SpectralReport.load,
        )

    def _uniform(self, batches: Sequence[Tensor]) -> TextNll | None:
        if self._text is None or not self._plan.baseline:
            return None
        selection = self._selection.batches
        return uniform_nll(
            self._plan, self._text, batches, selection=selection, choice=self._choice, progress=self._progress
        )


def _scores(
    source: BlockSource, config: PruneConfig, batches: Sequence[Tensor], output: OutputFolder, progress: Progress
) -> Scores | Sequence[float | None] | None:
    """Return scores of the dense blocks, loaded or computed; None if the allocation needs no activations."""
    if not ALLOCATIONS[config.allocation].needs_activations:
        return None
    activations = activations_folder(source, output)
    return output.load_or_compute(
        "scores.json",
        lambda: score_blocks(source, config, batches, activations=activations, ranks=output.ranks, progress=progress),
        lambda scores, path: write_text(path, json.dumps(scores) + "\n"),
        lambda path: cast("Scores", json.loads(path.read_text(encoding="utf-8"))),
    )


def _is_even(
    source: BlockSource, config: PruneConfig, spectra: SpectralReport, scores: Scores | Sequence[float | None] | None
) -> bool:
    """Whether the allocation removes the same weights per block as uniform sparsity."""
    uniform = replace(config, allocation="uniform")
    cuts = plan_removals(source, plan_targets(source, config, spectra=spectra, scores=scores), config)
    return cuts == plan_removals(source, plan_targets(source, uniform), uniform)

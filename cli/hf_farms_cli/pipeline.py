"""From a recipe to a finished folder, stage by stage; then to the Hub."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from hf_farms_cards.card import FIGURE, render_card
from hf_farms_cards.figures import draw_blocks

from hf_farms.blocks import ModelBlockSource
from hf_farms.checkpoint import CheckpointWriter, OutputFolder, writing
from hf_farms.errors import OutputError
from hf_farms.loading import Loaded, load_model
from hf_farms.metrics.nll import TextNll, require_causal, text_nll
from hf_farms.pruning.calibration import calibration_sequences, context_limit
from hf_farms.pruning.pruner import prune
from hf_farms.reports import REPORT_NAME, PerplexityRecord, PruneReport
from hf_farms.spectra.analysis import analyze
from hf_farms.texts import BUILT_IN, check_source, read_text, tokenize
from hf_farms_cli.console import Stages, quiet_transformers
from hf_farms_cli.recipe import RECIPE_NAME, Recipe

if TYPE_CHECKING:
    from hf_farms.config import EvaluationConfig

__all__ = ["check_before_work", "run_prune"]


def check_before_work(recipe: Recipe, folder: Path, *, overwrite: bool) -> PruneReport | None:
    """Refuse what cannot end well, before anything is loaded or uploaded.

    Returns:
        The report of the folder, if it is complete and came from the same recipe: it is used as it is then.

    Raises:
        OutputError: the folder must not be replaced.
        DataError: a text file does not exist.
    """
    if not overwrite and (finished := _finished(recipe, folder)):
        return finished
    OutputFolder(folder, overwrite=overwrite).check()
    for source in (recipe.calibration.source, recipe.evaluation.source):
        if source is not None and source != "self":
            check_source(source)
    return None


def run_prune(
    recipe: Recipe, folder: Path, *, overwrite: bool, device: str | None, repo_id: str | None, progress: Stages
) -> PruneReport:
    """Do what the recipe says; `folder` appears when everything in it is complete."""
    output = OutputFolder(folder, overwrite=overwrite)
    quiet_transformers()
    needs_tokenizer = recipe.evaluation.source is not None or recipe.prune.method == "wanda"
    loaded = load_model(
        recipe.model, dtype=recipe.dtype, device=device, revision=recipe.revision, tokenizer=needs_tokenizer
    )
    source = ModelBlockSource(loaded.model)
    text = _evaluation_text(recipe.evaluation, loaded)
    # A text that is too short must not cost an analysis, a model with NaN must not be asked to write.
    calibrated = _calibrate(recipe, loaded) if recipe.calibration.source != "self" else None
    spectra = analyze(source, recipe.prune.measurement(), progress=progress.of("Measuring spectra"))
    dense = text.measure(loaded, progress, "Dense perplexity") if text else None
    batches, notes = calibrated or _calibrate(recipe, loaded)
    partial = output.create()
    writer = CheckpointWriter(loaded.model, partial, len(source), records=output.state / "blocks")
    source.attach(writer)
    report = prune(source, recipe.prune, calibration=batches, spectra=spectra, progress=progress).report
    writer.finish(loaded.tokenizer, [source.metadata(index).name for index in range(len(source))])
    after = analyze(source, recipe.prune.measurement(), progress=progress.of("Measuring spectra again"))
    pruned = text.measure(loaded, progress, "Pruned perplexity") if text else None
    report = replace(
        report,
        model=recipe.model,
        after=after,
        calibration=replace(report.calibration, config=recipe.calibration) if report.calibration else None,
        perplexity=_perplexity(recipe.evaluation, report.dtype, dense, pruned),
        command=" ".join(["hf-farms", *sys.argv[1:]]),
        notes=(*report.notes, *notes, *(text.notes if text else ()), *_same_text(recipe), *spectra.notes),
    )
    _describe(partial, recipe, report, repo_id)
    output.finish()
    return report


def _finished(recipe: Recipe, folder: Path) -> PruneReport | None:
    """The report of a complete folder, if it came from the same recipe.

    Raises:
        OutputError: it came from another one.
    """
    if not (folder / REPORT_NAME).exists() or not (folder / RECIPE_NAME).exists():
        return None
    different = recipe.differences(Recipe.load(folder / RECIPE_NAME))
    if different:
        raise OutputError(
            f"output must be a new folder, got {str(folder)!r} with other settings ({'; '.join(different)}).",
            hint="Choose another --output, or replace it with --overwrite.",
        )
    return PruneReport.load(folder / REPORT_NAME)


class _Text:
    """The tokenised evaluation text, read before anything expensive."""

    def __init__(self, config: EvaluationConfig, loaded: Loaded) -> None:
        assert config.source is not None
        assert loaded.tokenizer is not None
        text = read_text(config.source, column=config.column, subset=config.subset, split=config.split)
        self.ids = torch.tensor(tokenize(loaded.tokenizer, text))
        limit = context_limit(loaded.model) or config.context_length
        self.context_length = min(config.context_length, limit)
        self.max_windows = config.max_windows
        lowered = self.context_length < config.context_length
        self.notes = (
            (f"Perplexity uses windows of {limit} tokens, the context length of the model.",) if lowered else ()
        )

    def measure(self, loaded: Loaded, progress: Stages, stage: str) -> TextNll:
        return text_nll(
            loaded.model,
            self.ids,
            context_length=self.context_length,
            max_windows=self.max_windows,
            progress=progress.of(stage),
        )


def _evaluation_text(config: EvaluationConfig, loaded: Loaded) -> _Text | None:
    if config.source is None:
        return None
    require_causal(loaded.model)
    return _Text(config, loaded)


def _calibrate(recipe: Recipe, loaded: Loaded) -> tuple[list[torch.Tensor], list[str]]:
    if recipe.prune.method != "wanda":
        return [], []
    return calibration_sequences(recipe.calibration, model=loaded.model, tokenizer=loaded.tokenizer)


def _same_text(recipe: Recipe) -> tuple[str, ...]:
    """A reader must know when the perplexity is measured on the kind of text that the pruning saw."""
    seen, tested = recipe.calibration, recipe.evaluation
    if recipe.prune.method != "wanda" or seen.source != tested.source:
        return ()
    if seen.source == BUILT_IN or (seen.split != tested.split and not Path(seen.source).exists()):
        return (
            f"Calibration and evaluation text are of one kind ({seen.source}), no passage in both: the perplexity "
            "says less about other text.",
        )
    return (f"Calibration and evaluation use the same text ({seen.source}): the perplexity flatters the pruned model.",)


def _perplexity(
    config: EvaluationConfig, dtype: str, dense: TextNll | None, pruned: TextNll | None
) -> PerplexityRecord | None:
    if dense is None or pruned is None:
        return None
    difference, stderr = pruned.difference(dense)
    return PerplexityRecord(
        config=config,
        context_length=dense.context_length,
        num_tokens=dense.num_tokens,
        dtype=dtype,
        dense=dense.perplexity,
        pruned=pruned.perplexity,
        nll_difference=difference,
        nll_difference_stderr=stderr,
    )


def _describe(folder: Path, recipe: Recipe, report: PruneReport, repo_id: str | None) -> None:
    """Write report, recipe, figure and card."""
    with writing(folder):
        report.save(folder / REPORT_NAME)
        recipe.save(folder / RECIPE_NAME)
        (folder / FIGURE).parent.mkdir(exist_ok=True)
        draw_blocks(report, folder / FIGURE)
        (folder / "README.md").write_text(render_card(report, repo_id=repo_id), encoding="utf-8")

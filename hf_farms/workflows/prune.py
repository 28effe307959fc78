"""From a recipe to a finished folder, stage by stage; then to the Hub."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hf_farms_cards import write_card

from hf_farms.blocks import BlockSource, StreamedBlockSource
from hf_farms.errors import HfFarmsWarning, ModelError
from hf_farms.files.atomic_writes import write_text
from hf_farms.files.own_files import foreign_texts
from hf_farms.hub.base_model import read_base_model
from hf_farms.hub.licence_files import copy_licence_files
from hf_farms.loading.names import DEMO
from hf_farms.loading.opening import LoadedModel, load_model
from hf_farms.output.checkpoint import CheckpointWriter
from hf_farms.output.fingerprint import fingerprint
from hf_farms.output.folder import OutputFolder, writing
from hf_farms.output.local_paths import save_local_paths
from hf_farms.output.recipe import RECIPE_NAME, Recipe
from hf_farms.progress import Progress, no_progress, one_stage
from hf_farms.pruning.checks import check_method
from hf_farms.pruning.pruner import prune
from hf_farms.pruning.removal_plan import plan_removals, plan_targets
from hf_farms.pruning.scoring import score_blocks
from hf_farms.registries import ALLOCATIONS
from hf_farms.reports import REPORT_NAME, BaseModelRecord, PruneReport, SpectralReport
from hf_farms.spectra.analysis import analyze
from hf_farms.workflows.baseline import uniform_nll
from hf_farms.workflows.texts import Calibration, EvaluationText, perplexity_record, same_text_note

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from hf_farms.config import PruneConfig
    from hf_farms.metrics.nll import TextNll

__all__ = ["run_prune"]

GENERATION = "generation_config.json"


def run_prune(
    recipe: Recipe,
    folder: Path,
    *,
    overwrite: bool,
    device: str | None,
    repo_id: str | None,
    progress: Progress = no_progress,
    command: str | None = None,
    stream: bool | None = None,
    allow_pickle: bool = False,
    baseline: bool = True,
    base: BaseModelRecord | None = None,
) -> PruneReport:
    """Do what the recipe says; `folder` appears when everything in it is complete.

    What an earlier run of the same finished in `DIR.partial` is taken from there.

    Args:
        recipe: model and settings.
        folder: for the result.
        overwrite: whether it may be replaced.
        device: where to compute; None: a GPU if there is one.
        repo_id: where the model will be found, for the card.
        progress: is told of every step.
        command: the command line that asked for it, for the card.
        stream: as for `load_model`.
        allow_pickle: as for `load_model`.
        baseline: measure the perplexity of uniform sparsity too.
        base: what the Hub says of the dense model.

    Raises:
        OutputError: the disk is too small, or `DIR.partial` holds the beginning of something else.
    """
    output = OutputFolder(folder, overwrite=overwrite)
    loaded = load_model(
        recipe.model,
        dtype=recipe.dtype,
        device=device,
        revision=recipe.revision,
        # One that is not needed goes along too.
        tokenizer=recipe.needs_tokenizer or None,
        stream=stream,
        allow_pickle=allow_pickle,
        head=recipe.evaluation.source is not None or (recipe.prune.needs_calibration and _writes_itself(recipe)),
    )
    check_method(loaded.source, recipe.prune)
    text = EvaluationText(recipe.evaluation, loaded) if recipe.evaluation.source is not None else None
    calibration = Calibration(recipe, loaded)
    output.check_space(_bytes_needed(loaded, calibration.known, baseline=baseline))
    partial = _begin(output, recipe, loaded, calibration, text)
    left = _left_out(recipe.model)
    spectra = output.load_or_compute(
        "spectra.json",
        lambda: analyze(loaded.source, recipe.prune.measurement(), progress=one_stage(progress, "Measuring spectra")),
        SpectralReport.save,
        SpectralReport.load,
    )
    base = _with_licence(recipe.model, base, partial)
    dense = text.measure_once(loaded, progress, "Dense perplexity", output) if text else None
    batches, notes = calibration.batches(output)
    scores = _scores(loaded.source, recipe.prune, batches, output, progress)
    even = _is_even(loaded.source, recipe.prune, spectra, scores)
    uniform = None
    if text and baseline and not even:
        uniform = uniform_nll(
            recipe, text, batches, output, device=device, allow_pickle=allow_pickle, progress=progress
        )
    report = _prune(loaded, recipe, batches, spectra, scores, output, progress, left=left)
    pruned = _pruned_nll(text, loaded, progress) if text else None
    if baseline and even and recipe.prune.allocation != "uniform":
        uniform = pruned
    texts = (*(text.notes if text else ()), *same_text_note(recipe))
    if text and pruned is None:
        texts = (*texts, "The perplexity of the pruned model is not finite.")
    report = replace(
        report,
        perplexity=perplexity_record(recipe.evaluation, report.dtype, dense=dense, pruned=pruned, uniform=uniform),
        base=base,
        command=command,
        notes=(*loaded.notes, *report.notes, *notes, *texts, *spectra.notes),
    )
    _describe(partial, recipe, report, repo_id)
    output.finish()
    save_local_paths(folder, recipe.places())
    return report


def _writes_itself(recipe: Recipe) -> bool:
    return recipe.calibration.source == "self"


def _prune(
    loaded: LoadedModel,
    recipe: Recipe,
    batches: Sequence[Tensor],
    spectra: SpectralReport,
    scores: list[float] | None,
    output: OutputFolder,
    progress: Progress,
    *,
    left: Sequence[str],
) -> PruneReport:
    """Prune the model into `DIR.partial`, and measure it again."""
    source = loaded.source
    writer = CheckpointWriter(
        loaded.model, output.partial, len(source), records=output.state / "blocks", absent=loaded.absent
    )
    source.attach(writer)
    report = prune(
        source,
        recipe.prune,
        calibration=batches,
        spectra=spectra,
        scores=scores,
        activations=_activations(source, output),
        progress=progress,
    ).report
    # Of the files that are left out, all but the generation config make the tokenizer.
    tokenizer = None if set(left) - {GENERATION} else loaded.tokenizer
    writer.finish(tokenizer, [source.metadata(index).name for index in range(len(source))])
    if GENERATION in left:
        (output.partial / GENERATION).unlink(missing_ok=True)
    return replace(
        report,
        model=recipe.model,
        after=analyze(source, recipe.prune.measurement(), progress=one_stage(progress, "Measuring spectra again")),
        calibration=replace(report.calibration, config=recipe.calibration) if report.calibration else None,
    )


def _activations(source: BlockSource, output: OutputFolder) -> Path | None:
    """Where the hidden states of the calibration data are kept; None: in memory."""
    return output.state / "activations" if isinstance(source, StreamedBlockSource) else None


def _scores(
    source: BlockSource, config: PruneConfig, batches: Sequence[Tensor], output: OutputFolder, progress: Progress
) -> list[float] | None:
    """Scores of the dense blocks, by this run or an earlier one; None where the allocation needs no activations."""
    if ALLOCATIONS[config.allocation].needs != "activations":
        return None
    activations = _activations(source, output)
    return output.load_or_compute(
        "scores.json",
        lambda: score_blocks(source, config, batches, activations=activations, progress=progress),
        lambda scores, path: write_text(path, json.dumps(scores) + "\n"),
        lambda path: [float(score) for score in json.loads(path.read_text(encoding="utf-8"))],
    )


def _is_even(source: BlockSource, config: PruneConfig, spectra: SpectralReport, scores: Sequence[float] | None) -> bool:
    """Whether the allocation takes from every block what uniform sparsity takes."""
    uniform = replace(config, allocation="uniform")
    cuts = plan_removals(source, plan_targets(source, config, spectra=spectra, scores=scores), config)
    return cuts == plan_removals(source, plan_targets(source, uniform), uniform)


def _pruned_nll(text: EvaluationText, loaded: LoadedModel, progress: Progress) -> TextNll | None:
    """NLL of the pruned model; None, with a warning, where it is not finite: the model is finished all the same."""
    try:
        found = text.measure(loaded, progress, "Pruned perplexity")
    except ModelError as error:
        warnings.warn(f"The pruned model has no perplexity: {error}", HfFarmsWarning, stacklevel=2)
        return None
    if math.isfinite(found.perplexity):
        return found
    warnings.warn("The pruned model has no finite perplexity: too much was removed.", HfFarmsWarning, stacklevel=2)
    return None


def _with_licence(model: str, base: BaseModelRecord | None, folder: Path) -> BaseModelRecord | None:
    """Put the licence files of the dense model beside the pruned one, and their names into its record."""
    if base is not None:
        return replace(base, files=copy_licence_files(base, folder))
    if model != DEMO and Path(model).is_dir():
        base, files = read_base_model(Path(model)), copy_licence_files(Path(model), folder)
        return replace(base, files=files) if base is not None else None
    return None


def _left_out(model: str) -> tuple[str, ...]:
    """Texts of a local model that are links out of its folder: they are read, and not put into the result."""
    left = foreign_texts(Path(model)) if model != DEMO and Path(model).is_dir() else ()
    if left:
        do = "leads to another place: it is" if len(left) == 1 else "lead to other places: they are"
        warnings.warn(
            f"{', '.join(left)} of {model!r} {do} read and not copied, and the result has no "
            f"{'generation config' if set(left) == {GENERATION} else 'tokenizer'} of its own. Put the files themselves "
            "there to have them copied.",
            HfFarmsWarning,
            stacklevel=2,
        )
    return left


def _begin(
    output: OutputFolder, recipe: Recipe, loaded: LoadedModel, calibration: Calibration, text: EvaluationText | None
) -> Path:
    tokens = {"calibration": calibration.known, "evaluation": [text.ids] if text else []}
    return output.resume_or_start(
        fingerprint(recipe.flat(), weights=loaded.weights, tokens=tokens, device=loaded.source.device.type)
    )


def _bytes_needed(loaded: LoadedModel, batches: Sequence[Tensor], *, baseline: bool) -> int:
    """Bytes on disk: the weights, and of a streamed model the hidden states of the calibration data.

    The baseline is streamed whatever the model is; its weights are gone before those of the result are written.
    """
    weights = sum(parameter.nbytes for parameter in loaded.source.model.parameters())
    if not isinstance(loaded.source, StreamedBlockSource) and not baseline:
        return weights
    width = int(getattr(loaded.source.config, "hidden_size", 0))
    return weights + sum(ids.numel() for ids in batches) * width * loaded.model.dtype.itemsize


def _describe(folder: Path, recipe: Recipe, report: PruneReport, repo_id: str | None) -> None:
    """Write report, recipe, figures and card."""
    with writing(folder):
        report.save(folder / REPORT_NAME)
        recipe.save(folder / RECIPE_NAME)
        write_card(report, folder, repo_id=repo_id)

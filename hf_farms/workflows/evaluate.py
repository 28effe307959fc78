"""What `eval` measures: the model, then the dense one."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from hf_farms_cards.card import check_card

from hf_farms.blocks import StreamedBlockSource
from hf_farms.config import EvaluationConfig
from hf_farms.errors import HfFarmsWarning, ModelError
from hf_farms.files.path_checks import check_within
from hf_farms.loading.opening import LoadedModel, load_model
from hf_farms.metrics.nll import require_causal
from hf_farms.metrics.sparsity_count import count_model_zeros
from hf_farms.metrics.task_scores import TaskScore
from hf_farms.metrics.tasks import TaskSuite
from hf_farms.output.allowed_paths import Reads, check_apart
from hf_farms.output.local_paths import located_report
from hf_farms.output.recipe import RECIPE_NAME, Recipe
from hf_farms.privacy.publishing import is_local
from hf_farms.progress import Progress, one_stage
from hf_farms.reports import REPORT_NAME, EvaluationReport, PruneReport
from hf_farms.reports.folders import kind_of
from hf_farms.workflows.evaluation_results import (
    EvaluationScores,
    known_perplexity,
    make_result,
    store,
    warn_of_another_text,
    warn_of_other_weights,
)
from hf_farms.workflows.texts import EvaluationText

__all__ = ["Evaluation", "check_model", "check_places", "evaluate"]


class Evaluation:
    """What is measured, in the same way on every model.

    Args:
        text: for the perplexity; None: none.
        sparsity: whether zeros are counted.
        suite: of lm-eval; None: no tasks.
        batch_size: questions at once.
        device: None is a GPU if there is one.
        stream: as for `load_model`.
        allow_pickle: as for `load_model`.
        progress: shown on stderr.
    """

    def __init__(
        self,
        *,
        text: EvaluationConfig | None,
        sparsity: bool,
        suite: TaskSuite | None,
        batch_size: int | str,
        device: str | None,
        stream: bool | None,
        allow_pickle: bool,
        progress: Progress,
    ) -> None:
        self.text, self._sparsity, self._suite, self._batch_size = text, sparsity, suite, batch_size
        self._device, self._stream, self._progress = device, stream, progress
        self._allow_pickle = allow_pickle
        self._read: EvaluationText | None = None
        self.notes: list[str] = []

    def of(
        self, name: str, *, revision: str | None, dtype: str, base: bool = False, perplexity: bool = True
    ) -> EvaluationScores:
        """Measure a model.

        Args:
            name: hub id, folder or `demo`.
            revision: of a hub id.
            dtype: to load it in.
            base: whether it is the dense one that another is compared with: of that, zeros are not counted.
            perplexity: whether the perplexity is wanted.

        Raises:
            ModelError: it cannot be loaded, or is no causal language model.
        """
        with_text = perplexity and self.text is not None
        asks = self._suite is not None
        loaded = load_model(
            name,
            dtype=dtype,
            device=self._device,
            revision=revision,
            tokenizer=with_text or asks,
            stream=self._stream,
            allow_pickle=self._allow_pickle,
            head=with_text or asks,
        )
        if with_text or asks:
            hint = "Measure its zeros alone: --metrics sparsity."
            require_causal(loaded.source.model, what="perplexity" if with_text else "tasks", hint=hint)
        short = Path(name).name
        nll = zeros = None
        if with_text:
            nll = self._text_of(loaded).measure(loaded, self._progress, f"Perplexity of {short}")
        if self._sparsity and not base:
            zeros = count_model_zeros(loaded.source, progress=one_stage(self._progress, f"Zeros of {short}"))
        return EvaluationScores(loaded.source.dtype, nll, zeros, self._answers(loaded, short))

    def _text_of(self, loaded: LoadedModel) -> EvaluationText:
        """The text as tokens of the first model: the second must see the same ones."""
        if self._read is None:
            assert self.text is not None
            self._read = EvaluationText(self.text, loaded)
            self.notes += self._read.notes
        return self._read

    def _answers(self, loaded: LoadedModel, short: str) -> tuple[TaskScore, ...]:
        if self._suite is None:
            return ()
        if isinstance(loaded.source, StreamedBlockSource):
            warnings.warn(
                f"tasks are slow on {short}: its blocks are on disk, and all of them are read for every batch. Give as "
                "large a --batch-size as fits.",
                HfFarmsWarning,
                stacklevel=2,
            )
        assert loaded.tokenizer is not None
        with loaded.source.whole():
            scores = self._suite.run(
                loaded.model,
                loaded.tokenizer,
                batch_size=self._batch_size,
                progress=lambda kind, done, total: self._progress(f"Tasks on {short} ({KINDS[kind]})", done, total),
            )
        return tuple(scores)


KINDS: Mapping[str, str] = {
    "loglikelihood": "choices",
    "loglikelihood_rolling": "texts",
    "generate_until": "written answers",
}


def check_model(name: str, *, revision: str | None, base: bool | None) -> tuple[PruneReport | None, bool]:
    """The report of a pruned model, and whether results may be written beside it.

    Args:
        name: hub id, folder or `demo`.
        revision: of a hub id.
        base: whether the dense model is wanted; a repository on the Hub is asked for its report only then.

    Raises:
        ValueError: the dense model is wanted and not known.
        DataError: the report cannot be read.
    """
    path = Path(name) / REPORT_NAME
    if base and not Path(name).is_dir():
        path = _from_hub(name, revision) or path
    report = None
    # Reports of other kinds name their kind.
    if path.is_file() and kind_of(path) is None:
        report = located_report(PruneReport.load(path), path.parent)
    if base and report is None:
        raise ValueError(
            f"base must be known from {REPORT_NAME}, which {name!r} does not have. Evaluate the dense model by itself."
        )
    if base and report is not None and _is_gone(report):
        raise ModelError(
            f"the dense model must be there to be compared with, got {report.model!r}, which is not.",
            hint="Put it there, or leave the comparison out: --no-base.",
        )
    # A link leads into the cache of the Hub, where nothing may change.
    here = path.parent == Path(name) and not path.is_symlink()
    if report is not None and here and not os.access(path.parent, os.W_OK):
        warnings.warn(f"{name} cannot be written to: the results are only printed.", HfFarmsWarning, stacklevel=2)
        here = False
    return report, report is not None and here


def _is_gone(report: PruneReport) -> bool:
    """Whether the dense model was a folder that is not where the report says, or that says only its last part."""
    local = report.base is None or report.base.local
    return local and is_local(report.model) and not Path(report.model).is_dir()


def check_places(output: Path | None, folder: Path | None, report: PruneReport | None, reads: Reads) -> None:
    """Refuse places that must not be written to, before anything is measured.

    Args:
        output: file of the results.
        folder: with the report and the card that the results go into.
        report: of the pruned model.
        reads: what is measured, and on what.

    Raises:
        OutputError: a link or a special file, something that is read, or a place in a model's folder.
    """
    if output is not None:
        dense = report.model if report is not None else None
        check_apart(output, {**reads, "the dense model": dense})
    if folder is not None and report is not None:
        check_within(folder, [REPORT_NAME])
        check_card(report, folder / "README.md")


def _from_hub(name: str, revision: str | None) -> Path | None:
    from transformers.utils.hub import cached_file

    from hf_farms.hub.client import hub_errors
    from hf_farms.loading.names import resolve

    with hub_errors(name, action="load"):
        found = cached_file(resolve(name), REPORT_NAME, revision=revision, _raise_exceptions_for_missing_entries=False)
    return Path(found) if found else None


def evaluate(
    evaluation: Evaluation,
    name: str,
    *,
    revision: str | None,
    dtype: str,
    report: PruneReport | None,
    base: bool,
    writes: bool,
) -> tuple[EvaluationReport, bool]:
    """Measure a model, then the dense one; results go into the report and the card as soon as they are there.

    Args:
        evaluation: what is measured.
        name: hub id, folder or `demo`.
        revision: of a hub id.
        dtype: to load it in.
        report: of the pruned model.
        base: whether the dense model is measured too.
        writes: whether the results go into the report in the folder.

    Returns:
        The results, and whether the report has changed.
    """
    mine = evaluation.of(name, revision=revision, dtype=dtype)
    known = known_perplexity(mine, evaluation.text, report)
    if report is not None:
        known = warn_of_other_weights(mine, known, report)
    dense_name, dense_revision = _dense_model(report, Path(name)) if report is not None else (None, None)
    make = partial(make_result, name, mine, text=evaluation.text, known=known, base=dense_name)
    result = make(notes=evaluation.notes)
    if writes and report is not None:
        warn_of_another_text(result, report)
    written = writes and store(Path(name), result)
    wanted = mine.nll is not None and (known is None or known.dense is None)
    if base and (wanted or mine.tasks) and report is not None and _is_gone(report):
        warnings.warn(
            f"the dense model is not at {report.model!r}, where the report has it: it was not measured.",
            HfFarmsWarning,
            stacklevel=2,
        )
        base = False
    if base and dense_name is not None and (wanted or mine.tasks):
        # Two models in memory would be one too many.
        gc.collect()
        dense = evaluation.of(dense_name, revision=dense_revision, dtype=mine.dtype, base=True, perplexity=wanted)
        result = make(notes=evaluation.notes, dense=dense)
        written |= writes and store(Path(name), result)
    return result, written


def _dense_model(report: PruneReport, folder: Path) -> tuple[str, str | None]:
    """Name and revision of the model that was pruned."""
    if report.base is not None and not report.base.local:
        return report.base.repo_id, report.base.revision
    recipe = folder / RECIPE_NAME
    return report.model, Recipe.load(recipe).revision if recipe.is_file() else None

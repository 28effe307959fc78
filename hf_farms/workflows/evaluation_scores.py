"""Perplexity, zeros and tasks of one model after the other, measured in the same way. Imports torch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from hf_farms.blocks import StreamedBlockSource
from hf_farms.config import EvaluationConfig, LoadOptions
from hf_farms.errors import HfFarmsWarning
from hf_farms.loading.opening import LoadedModel, load_model
from hf_farms.metrics.nll import require_causal
from hf_farms.metrics.sparsity_count import count_model_zeros
from hf_farms.metrics.task_scores import TaskScore
from hf_farms.metrics.tasks import TaskSuite
from hf_farms.progress import Progress, one_stage
from hf_farms.workflows.evaluation_results import EvaluationScores
from hf_farms.workflows.text_lengths import checked_before_weights
from hf_farms.workflows.texts import EvaluationText

__all__ = ["Evaluator"]

# Kind of a request of lm-eval -> its name in the progress.
KINDS: Mapping[str, str] = {
    "loglikelihood": "choices",
    "loglikelihood_rolling": "texts",
    "generate_until": "written answers",
}


class Evaluator:
    """Measures any number of models in the same way.

    Args:
        text: of the perplexity; None: no perplexity.
        sparsity: whether zeros are counted.
        suite: tasks of lm-eval; None: no tasks.
        batch_size: samples per batch.
        load: options for loading the models; dtype and revision may differ between models.
        progress: called with every step.

    Attributes:
        notes: remarks on the text, known after the first model.
    """

    def __init__(
        self,
        *,
        text: EvaluationConfig | None,
        sparsity: bool,
        suite: TaskSuite | None,
        batch_size: int | str,
        load: LoadOptions,
        progress: Progress,
    ) -> None:
        self.text, self._sparsity, self._suite, self._batch_size = text, sparsity, suite, batch_size
        self._load, self._progress = load, progress
        self._tokens: EvaluationText | None = None
        self.notes: list[str] = []

    def measure(
        self, name: str, *, revision: str | None, dtype: str, zeros: bool, perplexity: bool
    ) -> EvaluationScores:
        """Measure a model.

        Args:
            name: hub id, folder or `demo`.
            revision: of a hub id.
            dtype: to load it in.
            zeros: whether zeros are counted, if at all.
            perplexity: whether the perplexity is measured, if at all.

        Raises:
            ModelError: it cannot be loaded, or is no causal language model.
        """
        with_text = perplexity and self.text is not None
        writes = with_text or self._suite is not None
        hint = "Measure its zeros alone: `metrics=['sparsity']`."
        require = partial(require_causal, what="perplexity" if with_text else "tasks", hint=hint)
        loaded = load_model(
            name,
            dtype=dtype,
            device=self._load.device,
            revision=revision,
            tokenizer=writes,
            stream=self._load.stream,
            allow_pickle=self._load.allow_pickle,
            head=writes,
            before_weights=checked_before_weights([self.text] if with_text and self.text else [], require=require),
        )
        if writes:
            require(loaded.source.model)
        short = Path(name).name
        nll = count = None
        if with_text:
            nll = self._text_of(loaded).measure(loaded, self._progress, f"Perplexity of {short}")
        if self._sparsity and zeros:
            count = count_model_zeros(loaded.source, progress=one_stage(self._progress, f"Zeros of {short}"))
        return EvaluationScores(loaded.source.dtype, nll, count, self._task_scores(loaded, short))

    def _text_of(self, loaded: LoadedModel) -> EvaluationText:
        """Return the text, tokenized once for the first model: both models must see the same tokens."""
        if self._tokens is None:
            assert self.text is not None
            self._tokens = EvaluationText(self.text, loaded)
            self.notes += self._tokens.notes
        return self._tokens

    def _task_scores(self, loaded: LoadedModel, short: str) -> tuple[TaskScore, ...]:
        if self._suite is None:
            return ()
        if isinstance(loaded.source, StreamedBlockSource):
            warnings.warn(
                f"tasks are slow on {short}: its blocks are on disk, and all of them are read for every batch. Give as "
                "large a `batch_size` as fits.",
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

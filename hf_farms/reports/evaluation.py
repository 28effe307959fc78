"""Reports of perplexity, sparsity, and tasks of lm-eval."""

from __future__ import annotations

from dataclasses import dataclass

from hf_farms.config import EvaluationConfig
from hf_farms.reports.base import Report

__all__ = ["EvaluationReport", "PerplexityRecord", "PerplexityScore", "SparsityScore", "TaskRecord"]


@dataclass(frozen=True, kw_only=True)
class PerplexityRecord:
    """Perplexity of the dense and the pruned model on the same windows.

    Attributes:
        config: the text and the windows.
        context_length: tokens in a window.
        num_tokens: predicted tokens.
        dtype: of the weights and the forward pass.
        dense: perplexity before pruning.
        pruned: perplexity after.
        nll_difference: mean NLL after minus before, in nats per token.
        nll_difference_stderr: its paired standard error over windows; None with a single window.
        uniform: perplexity of the same model pruned in the same way to the same sparsity in every block; None if not
            measured.
        uniform_nll_difference: mean NLL of the pruned model minus that of the uniform one, in nats per token.
        uniform_nll_difference_stderr: its paired standard error.
    """

    config: EvaluationConfig
    context_length: int
    num_tokens: int
    dtype: str
    dense: float | None
    pruned: float | None
    nll_difference: float | None
    nll_difference_stderr: float | None
    uniform: float | None = None
    uniform_nll_difference: float | None = None
    uniform_nll_difference_stderr: float | None = None


@dataclass(frozen=True, kw_only=True)
class TaskRecord:
    """One metric of one lm-eval task.

    Attributes:
        task: its name.
        metric: as lm-eval calls it, such as `acc`.
        value: of this model.
        stderr: its standard error; None where lm-eval gives none.
        num_fewshot: examples before each question.
        num_samples: questions.
        version: of the task.
        dense: of the dense model on the same questions; None if not measured.
        dense_stderr: its standard error.
        difference_stderr: standard error of `value - dense`, paired over questions; None where the metric is not the
            mean over questions, or with one question.
        total_samples: questions of the whole task, of which `num_samples` were evaluated; None: unknown.
    """

    task: str
    metric: str
    value: float
    stderr: float | None
    num_fewshot: int
    num_samples: int
    version: str
    dense: float | None = None
    dense_stderr: float | None = None
    difference_stderr: float | None = None
    total_samples: int | None = None


@dataclass(frozen=True, kw_only=True)
class PerplexityScore:
    """Perplexity of one model, and of the dense one on the same windows.

    Attributes:
        config: the text and the windows.
        context_length: tokens in a window.
        num_tokens: predicted tokens.
        value: the perplexity.
        dense: that of the dense model; None if not measured.
        nll_difference: mean NLL minus that of the dense model, in nats per token.
        nll_difference_stderr: its paired standard error over windows.
    """

    config: EvaluationConfig
    context_length: int
    num_tokens: int
    value: float
    dense: float | None = None
    nll_difference: float | None = None
    nll_difference_stderr: float | None = None


@dataclass(frozen=True, kw_only=True)
class SparsityScore:
    """Zeros of one model.

    Attributes:
        value: as a fraction of the linear layers inside the blocks.
        of_parameters: as a fraction of all parameters.
        num_parameters: all parameters, tied ones once.
    """

    value: float
    of_parameters: float
    num_parameters: int


@dataclass(frozen=True, kw_only=True)
class EvaluationReport(Report):
    """The results of `hf-farms eval`.

    Attributes:
        model: hub id, folder or `demo`.
        dtype: of weights and forward passes.
        base: the dense model that it is compared with; None: with none.
        perplexity: None if not measured.
        sparsity: None if not measured.
        tasks: results of lm-eval.
        notes: what a reader must know.
    """

    model: str
    dtype: str
    base: str | None = None
    perplexity: PerplexityScore | None = None
    sparsity: SparsityScore | None = None
    tasks: tuple[TaskRecord, ...] = ()
    notes: tuple[str, ...] = ()

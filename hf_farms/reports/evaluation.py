"""How good a model is: perplexity, and tasks of lm-eval."""

from __future__ import annotations

from dataclasses import dataclass

from hf_farms.config import EvaluationConfig

__all__ = ["PerplexityRecord", "TaskRecord"]


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

"""Perplexity as an `evaluate` module: `evaluate.load(hf_farms.metrics.path("perplexity"))`, or `Perplexity()`."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from hf_farms.blocks.model_checks import check_blocks
from hf_farms.config import EvaluationConfig
from hf_farms.config.checks import check
from hf_farms.metrics.citations import WANDA, WIKITEXT
from hf_farms.metrics.nll import text_nll

__all__ = ["Perplexity"]

DESCRIPTION = """
Perplexity of a causal language model as the pruning papers report it on WikiText-2: all texts are joined and cut into
windows of one context length; perplexity is the exponential of the mean negative log-likelihood per predicted token.
(The `perplexity` module on the Hub averages the perplexities of single texts instead.) Perplexities are comparable only
for the same text, context length and tokenizer.
"""
INPUTS = """
Args:
    predictions: texts, joined by an empty line in the given order.
    model: a causal language model of transformers, or its blocks (`hf_farms.blocks`), which may be on disk.
    tokenizer: its tokenizer.
    context_length: tokens per window.
    max_windows: use only the first windows; None for all.
Returns:
    perplexity: exp(nll).
    nll: nats per token.
    num_tokens: number of predicted tokens.
    num_windows, context_length: number and length of the windows.
    window_nll: nll of each window, for paired errors between models.
Example:
    >>> import evaluate
    >>> from hf_farms.metrics import path
    >>> metric = evaluate.load(path("perplexity"))
    >>> metric.compute(predictions=texts, model=model, tokenizer=tokenizer, context_length=2048)["perplexity"]
"""
CITATION = WANDA + WIKITEXT


class Perplexity(evaluate.Metric):  # type: ignore[misc]
    """Perplexity over joined texts, computed by `text_nll`; see `DESCRIPTION` and `INPUTS`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string")}),
            reference_urls=["https://arxiv.org/abs/2306.11695", "https://arxiv.org/abs/1609.07843"],
        )

    def _compute(
        self,
        *,
        predictions: list[str],
        model: Any,
        tokenizer: Any,
        context_length: int = EvaluationConfig.context_length,
        max_windows: int | None = None,
    ) -> dict[str, Any]:
        check_blocks(model)
        check(callable(tokenizer), "tokenizer", "the tokenizer of the model", tokenizer)
        EvaluationConfig(context_length=context_length, max_windows=max_windows)  # checks them
        ids = tokenizer("\n\n".join(predictions), verbose=False)["input_ids"]
        result = text_nll(model, ids, context_length=context_length, max_windows=max_windows)
        return {
            "perplexity": result.perplexity,
            "nll": result.nll,
            "num_tokens": result.num_tokens,
            "num_windows": len(result.windows),
            "context_length": result.context_length,
            "window_nll": list(result.windows),
        }

"""Sparsity as an `evaluate` module: `evaluate.load(hf_farms.metrics.path("sparsity"))`, or `Sparsity()`."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from hf_farms.metrics.citations import WANDA
from hf_farms.metrics.sparsity_count import count_model_zeros

__all__ = ["Sparsity"]

DESCRIPTION = """
Sparsity of a model: the fraction of its weights that are zero. Pruning papers report the fraction over the linear
layers inside the blocks, without embeddings, norms and head; the fraction over all parameters is lower and is also
returned. Zeros are counted exactly; a tied parameter counts once. Weights of a quantized model are dequantized first.
"""
INPUTS = """
Args:
    model: a transformers model of any architecture, or its blocks (`hf_farms.blocks`), which may be on disk.
    Other arguments (predictions, a tokenizer) are ignored, so that `evaluate.combine` can pass the same arguments to
    this metric and to perplexity.
Returns:
    sparsity: zeros as a fraction of the linear layers inside the blocks, without routers.
    parameter_sparsity: zeros as a fraction of all parameters.
    block_sparsity: sparsity of each block.
    num_zeros, num_weights: counts over the linear layers.
    num_zero_parameters, num_parameters: counts over the whole model.
Example:
    >>> import evaluate
    >>> from hf_farms.metrics import path
    >>> evaluate.load(path("sparsity")).compute(model=model)["sparsity"]
"""
CITATION = WANDA


class Sparsity(evaluate.Metric):  # type: ignore[misc]
    """Sparsity of a model, computed by `count_model_zeros`; see `DESCRIPTION` and `INPUTS`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string")}),
            reference_urls=["https://arxiv.org/abs/2306.11695"],
        )

    def compute(self, *, model: Any, **others: Any) -> dict[str, Any]:
        """Count the zeros of a model. Overridden because `evaluate` requires predictions, and there are none."""
        return self._compute(model=model)

    def _compute(self, *, model: Any) -> dict[str, Any]:
        counts = count_model_zeros(model)
        return {
            "sparsity": counts.sparsity,
            "parameter_sparsity": counts.parameter_sparsity,
            "block_sparsity": [zeros / weights for zeros, weights in counts.blocks],
            "num_zeros": counts.num_zeros,
            "num_weights": counts.num_weights,
            "num_zero_parameters": counts.num_zero_parameters,
            "num_parameters": counts.num_parameters,
        }

"""Sparsity as an `evaluate` module: `evaluate.load(hf_farms.metrics.path("sparsity"))`, or `Sparsity()`."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from hf_farms.metrics.sparsity_count import count_model_zeros

__all__ = ["Sparsity"]

DESCRIPTION = """
How many weights of a model are zero. Pruning papers state the fraction of the linear layers inside the blocks, which
embeddings, norms and the head are no part of; the fraction of all parameters is lower and stands beside it. Zeros are
counted, not estimated, and a tied parameter counts once. Weights of a quantised model are counted dequantised.
"""
INPUTS = """
Args:
    model: a transformers model of any architecture, or its blocks (`hf_farms.blocks`), which may lie on disk.
    Anything else (predictions, a tokenizer) is taken and not used, so that `evaluate.combine` can hand one set of
    arguments to this metric and to perplexity.
Returns:
    sparsity: zeros as a fraction of the linear layers inside the blocks, routers of experts left out.
    parameter_sparsity: zeros as a fraction of all parameters.
    block_sparsity: the first, of each block.
    num_zeros, num_weights: of the linear layers.
    num_zero_parameters, num_parameters: of the whole model.
Example:
    >>> import evaluate
    >>> from hf_farms.metrics import path
    >>> evaluate.load(path("sparsity")).compute(model=model)["sparsity"]
"""
CITATION = """
@inproceedings{sun2024wanda,
  title={A Simple and Effective Pruning Approach for Large Language Models},
  author={Sun, Mingjie and Liu, Zhuang and Bair, Anna and Kolter, J. Zico},
  booktitle={International Conference on Learning Representations},
  year={2024},
  eprint={2306.11695},
  archivePrefix={arXiv}
}
"""


class Sparsity(evaluate.Metric):  # type: ignore[misc]
    """Zeros of a model; see `DESCRIPTION` and `INPUTS`. The computing is `zeros.count_model_zeros`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string")}),
            reference_urls=["https://arxiv.org/abs/2306.11695"],
        )

    def compute(self, *, model: Any, **others: Any) -> dict[str, Any]:
        """Count the zeros of a model. There are no predictions to collect, and `evaluate` insists on some."""
        return self._compute(model=model)

    def _compute(self, *, model: Any) -> dict[str, Any]:
        found = count_model_zeros(model)
        return {
            "sparsity": found.sparsity,
            "parameter_sparsity": found.parameter_sparsity,
            "block_sparsity": [zeros / weights for zeros, weights in found.blocks],
            "num_zeros": found.num_zeros,
            "num_weights": found.num_weights,
            "num_zero_parameters": found.num_zero_parameters,
            "num_parameters": found.num_parameters,
        }

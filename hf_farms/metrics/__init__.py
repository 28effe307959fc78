"""Metrics, and modules of the `evaluate` library that wrap them.

divergence.py      KL to the dense model
nll.py             negative log-likelihood of a text
perplexity.py      `evaluate` module around nll.py
sparsity_count.py  count the zeros of a model
sparsity.py        `evaluate` module around sparsity_count.py
tasks.py           TaskSuite: run tasks of lm-eval on models
task_loading.py    find tasks of lm-eval, set its seeds
task_scores.py     compare and merge task results
quiet.py           check that lm-eval is installed, and silence it

`evaluate.load(hf_farms.metrics.path("perplexity"))` needs no network. `evaluate` copies a module to its cache and runs
it there, so perplexity.py and sparsity.py use absolute imports, one per line.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hf_farms.files.moved_names import moved

__all__ = ["METRICS", "path"]

METRICS = ("perplexity", "sparsity")


def path(name: str) -> str:
    """Return the path of a metric module, for `evaluate.load` and `evaluate.combine`.

    Args:
        name: "perplexity" or "sparsity".

    Raises:
        ValueError: unknown metric.
    """
    if name not in METRICS:
        raise ValueError(f"name must be one of {', '.join(METRICS)}, got {name!r}.")
    return str(Path(__file__).with_name(f"{name}.py"))


if not TYPE_CHECKING:
    __getattr__ = moved(__name__, {"MODULES": "hf_farms.metrics.METRICS"})

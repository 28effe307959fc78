"""Metrics: what computes them, and modules of `evaluate` around that.

nll.py          text -> negative log-likelihood; perplexity.py is the module around it
zeros.py        model -> its zeros; sparsity.py is the module around it
tasks.py        questions of lm-eval; scores.py compares their results, quiet.py keeps it quiet

`evaluate.load(hf_farms.metrics.path("perplexity"))` needs no network. `evaluate` copies a module to its cache and runs
it from there, so that these two import by absolute names, one import on a line.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["METRICS", "path"]

METRICS = ("perplexity", "sparsity")


def path(name: str) -> str:
    """Where a metric lies, as `evaluate.load` and `evaluate.combine` take it.

    Args:
        name: "perplexity" or "sparsity".

    Raises:
        ValueError: there is no such metric.
    """
    if name not in METRICS:
        raise ValueError(f"name must be one of {', '.join(METRICS)}, got {name!r}.")
    return str(Path(__file__).with_name(f"{name}.py"))

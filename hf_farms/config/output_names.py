"""Names of pruned models, from their options."""

from __future__ import annotations

from hf_farms.config.prune import PruneConfig
from hf_farms.files.paths import folder_name

__all__ = ["default_output_name"]


def default_output_name(model: str, config: PruneConfig) -> str:
    """Return the name of the folder and repository of a pruned model, such as `Llama-2-7b-farms-wanda-50-2of4`.

    Args:
        model: hub id, folder or `demo`.
        config: gives allocation, method, refinement, sparsity and pattern.
    """
    name = folder_name(model.replace("\\", "/")) or "model"
    pattern = "" if config.group is None else "-" + config.pattern.replace(":", "of")
    # A mixture without the signs that names of repositories and folders cannot have: ramp0.7-farms0.3.
    allocation = config.allocation.replace(":", "").replace("+", "-")
    refined = "" if config.refine == "none" else f"-{config.refine}"
    return f"{name}-{allocation}-{config.method}{refined}-{_percent(config.sparsity)}{pattern}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.4g}"

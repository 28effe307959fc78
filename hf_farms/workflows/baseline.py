"""What uniform sparsity would have come to: the same model, pruned to the same sparsity in every block."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

from hf_farms.errors import HfFarmsWarning, ModelError
from hf_farms.loading.opening import load_model
from hf_farms.output.checkpoint import CheckpointWriter
from hf_farms.pruning.pruner import prune
from hf_farms.workflows.texts import EvaluationText, load_nll, save_nll

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from hf_farms.metrics.nll import TextNll
    from hf_farms.output.folder import OutputFolder
    from hf_farms.output.recipe import Recipe
    from hf_farms.progress import Progress

__all__ = ["uniform_nll"]


def uniform_nll(
    recipe: Recipe,
    text: EvaluationText,
    batches: Sequence[Tensor],
    output: OutputFolder,
    *,
    device: str | None,
    allow_pickle: bool,
    progress: Progress,
) -> TextNll | None:
    """NLL of the text when every block loses the same share; None, with a warning, where the model cannot be had so.

    The dense blocks are read from disk one at a time, beside whatever is in memory, and the pruned ones are kept only
    until they are measured: a pass of pruning and one of measuring more, and the size of the model on disk meanwhile.
    """
    folder = output.state / "uniform"

    def measure() -> TextNll:
        loaded = load_model(
            recipe.model,
            dtype=recipe.dtype,
            device=device,
            revision=recipe.revision,
            tokenizer=False,
            stream=True,
            allow_pickle=allow_pickle,
        )
        source = loaded.source
        source.attach(CheckpointWriter(loaded.model, folder, len(source), records=folder / "blocks"))
        prune(
            source,
            replace(recipe.prune, allocation="uniform"),
            calibration=batches,
            activations=folder / "activations",
            progress=lambda stage, done, total: progress(f"{stage} (uniform)", done, total),
        )
        return text.measure(loaded, progress, "Uniform perplexity")

    try:
        found = output.load_or_compute("uniform_perplexity.json", measure, save_nll, load_nll)
    except ModelError as error:
        # What is only there for comparison must not stand in the way of the result.
        warnings.warn(f"Uniform sparsity was not measured: {error}", HfFarmsWarning, stacklevel=2)
        found = None
    shutil.rmtree(folder, ignore_errors=True)
    return found

"""The baseline: perplexity of the same model, pruned with the same sparsity in every block."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from hf_farms.errors import HfFarmsWarning, ModelError
from hf_farms.loading.opening import load_model
from hf_farms.pruning.pruner import prune
from hf_farms.workflows.recovered_choice import UNIFORM_PERPLEXITY
from hf_farms.workflows.texts import EvaluationText, load_nll, save_nll

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from hf_farms.metrics.nll import TextNll
    from hf_farms.progress import Progress
    from hf_farms.workflows.prune_plan import PrunePlan
    from hf_farms.workflows.recovered_choice import RecoveredChoice

__all__ = ["uniform_nll"]


def uniform_nll(
    plan: PrunePlan,
    text: EvaluationText,
    batches: Sequence[Tensor],
    *,
    selection: Sequence[Tensor],
    choice: RecoveredChoice,
    progress: Progress,
) -> TextNll | None:
    """Measure the NLL with uniform sparsity; None, with a warning, if the model cannot be streamed.

    The dense blocks are read from disk one at a time, and the pruned ones are kept on disk until they are measured, or
    compared with the result. The cost is one more pass of pruning and of measuring, and temporary disk space of the
    size of the model. For a recovery that trains the whole model, it is in memory instead, next to the dense one.
    """
    output = plan.output
    folder = choice.folder

    def measure() -> TextNll:
        config = replace(plan.recipe.prune, allocation="uniform")
        load = replace(plan.load, stream=not config.trains, device=plan.load.device or output.ranks.device)
        loaded = load_model(plan.model, **asdict(load), tokenizer=False)
        source = loaded.source
        source.attach(choice.uniform_writer(loaded), keep_dense=config.trains)
        prune(
            source,
            config,
            calibration=batches,
            selection=selection or None,
            activations=folder / "activations",
            checkpoints=folder / "distill" if config.trains else None,
            ranks=output.ranks,
            progress=lambda stage, done, total: progress(f"{stage} (uniform)", done, total),
        )
        # The blocks may stay for a while; the hidden states are not needed any more.
        if output.ranks.index == 0:
            shutil.rmtree(folder / "activations", ignore_errors=True)
        nll = text.measure(loaded, progress, "Uniform perplexity", output.ranks)
        choice.measure_uniform(loaded)
        return nll

    try:
        # On several processes all of them get the error, and go on without the baseline.
        with output.ranks.failing_together():
            nll = output.load_or_compute(UNIFORM_PERPLEXITY, measure, save_nll, load_nll)
    except ModelError as error:
        # The baseline is for comparison only: its failure must not prevent the result.
        warnings.warn(f"Uniform sparsity was not measured: {error}", HfFarmsWarning, stacklevel=2)
        nll = None
    if nll is None or not choice.can_take_uniform:
        choice.forget()
    return nll

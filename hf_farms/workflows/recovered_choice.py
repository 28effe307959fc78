"""Compare the plan of a search with uniform sparsity, both with the whole recovery, on the selection text.

A search recovers its last plans in one pass, and a longer recovery leaves less to an allocation. The baseline has the
whole recovery, so that the comparison needs no more pruning, only two forward passes of up to 16,384 tokens.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch

from hf_farms.blocks import StreamedBlockSource
from hf_farms.data.selection import split_selection
from hf_farms.errors import HfFarmsWarning, ModelError
from hf_farms.metrics.nll import TextNll, text_nll
from hf_farms.progress import Progress, one_stage
from hf_farms.registries import RECOVERIES
from hf_farms.workflows.estimate import FINALIST_TOKENS
from hf_farms.workflows.texts import load_nll, save_nll

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from hf_farms.config import PruneConfig
    from hf_farms.loading.opening import LoadedModel
    from hf_farms.output.folder import OutputFolder

__all__ = ["RecoveredChoice"]

# In the state folder of unfinished work.
UNIFORM_NAME = "uniform_selection.json"


class RecoveredChoice:
    """The NLL of the first half of the selection text, with the plan that was found and with uniform sparsity.

    Args:
        config: of the prune; for an allocation that searches nothing, or without a recovery, nothing is measured.
        selection: the selection text; its first half, which searches, is measured.
        output: keeps the NLL of uniform sparsity.
        progress: called with every step.
    """

    def __init__(
        self, config: PruneConfig, selection: Sequence[Tensor], output: OutputFolder, progress: Progress
    ) -> None:
        self._needed = config.searches and RECOVERIES[config.recover].needs == "activations"
        self._selection, self._output, self._progress = selection, output, progress

    def measure_uniform(self, loaded: LoadedModel) -> None:
        """Measure the model that was pruned with uniform sparsity and recovered, and keep the result."""
        if self._needed:
            stage = "Uniform sparsity on the selection text"
            self._output.load_or_compute(UNIFORM_NAME, lambda: self._measure(loaded, stage), save_nll, load_nll)

    def note(self, loaded: LoadedModel) -> str | None:
        """Measure the result, and compare it with uniform sparsity; None where that was not measured."""
        uniform = self._output.load_saved(UNIFORM_NAME, load_nll) if self._needed else None
        if uniform is None:
            return None
        try:
            with self._output.ranks.failing_together():
                return comparison(self._measure(loaded, "The result on the selection text"), uniform)
        except ModelError as error:
            warnings.warn(f"The result was not compared with uniform sparsity: {error}", HfFarmsWarning, stacklevel=2)
            return None

    def _measure(self, loaded: LoadedModel, stage: str) -> TextNll:
        rows = [row["input_ids"] for row in split_selection(self._selection).search]
        length = rows[0].shape[1]
        source = loaded.source
        return text_nll(
            source if isinstance(source, StreamedBlockSource) else source.model,
            torch.cat(rows).flatten(),
            context_length=length,
            max_windows=max(2, FINALIST_TOKENS // length),
            ranks=self._output.ranks,
            progress=one_stage(self._progress, stage),
        )


def comparison(found: TextNll, uniform: TextNll) -> str:
    """Return a sentence with both NLLs and their paired difference; it names the better model where it is uniform."""
    difference, error = found.difference(uniform)
    text = (
        f"With the whole recovery, the NLL of {found.num_tokens:,} tokens of the selection text is {found.nll:.3f} "
        f"with the plan of the search and {uniform.nll:.3f} with uniform sparsity"
    )
    if error is None:
        return f"{text}."
    text += f" ({difference:+.3f} ± {error:.3f})"
    better = ": uniform sparsity is better here, prune with `allocation='uniform'`"
    return f"{text}{better if difference > 2 * error else ''}."

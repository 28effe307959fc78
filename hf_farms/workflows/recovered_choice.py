"""Compare the plan of a search with uniform sparsity, both with the whole recovery, on the selection text.

A search recovers its last plans in one pass, and a longer recovery leaves less to an allocation. The baseline has the
whole recovery, so that the comparison needs no more pruning, only two forward passes of up to 16,384 tokens (or two
sequences, if these are longer). They are of the second half of the text, on which no plan was chosen.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
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
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from hf_farms.config import PruneConfig
    from hf_farms.loading.opening import LoadedModel
    from hf_farms.output.folder import OutputFolder

__all__ = ["RecoveredChoice"]

# Fewer sequences give no advice: the errors of a few are too small too often.
SEQUENCES_AT_LEAST = 8
# In the state folder of unfinished work.
UNIFORM_NAME = "uniform_selection.json"


class RecoveredChoice:
    """The NLL of the second half of the selection text, with the plan that was found and with uniform sparsity.

    Args:
        config: of the prune; for an allocation that searches nothing, or without a recovery, nothing is measured.
        selection: the selection text; its second half is measured.
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
        if not self._needed:
            return
        stage = "Uniform sparsity on the selection text"
        with self._warned():
            self._output.load_or_compute(UNIFORM_NAME, lambda: self._measure(loaded, stage), save_nll, load_nll)

    def note(self, loaded: LoadedModel) -> str | None:
        """Measure the result, and compare it with uniform sparsity; None where that was not measured."""
        uniform = self._output.load_saved(UNIFORM_NAME, load_nll) if self._needed else None
        if uniform is not None:
            with self._warned():
                return comparison(self._measure(loaded, "The result on the selection text"), uniform)
        return None

    @contextmanager
    def _warned(self) -> Iterator[None]:
        """Warn of a model that cannot be measured: the comparison must not prevent the result."""
        try:
            with self._output.ranks.failing_together():
                yield
        except ModelError as error:
            warnings.warn(f"The result is not compared with uniform sparsity: {error}", HfFarmsWarning, stacklevel=3)

    def _measure(self, loaded: LoadedModel, stage: str) -> TextNll:
        rows = [row["input_ids"] for row in split_selection(self._selection).acceptance]
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
    """Return a sentence with both NLLs and their paired difference; it tells of uniform sparsity that is better.

    The error is that over sequences; another choice of calibration passages moves the difference too.
    """
    difference, error = found.difference(uniform)
    text = (
        f"With the whole recovery, the NLL of {found.num_tokens:,} tokens of the selection text, on which no plan was "
        f"chosen, is {found.nll:.3f} with the plan of the search and {uniform.nll:.3f} with uniform sparsity"
    )
    if error is None:
        return f"{text}."
    text += f" ({difference:+.3f} ± {error:.3f})"
    if difference > 2 * error and len(found.windows) >= SEQUENCES_AT_LEAST:
        text += ": uniform sparsity was better on this text, try `allocation='uniform'`"
    return f"{text}."

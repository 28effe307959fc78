"""Compare the plan of a search with uniform sparsity, both with the whole recovery, on the selection text.

A search recovers its last plans in one pass, and a longer recovery leaves less to an allocation. The baseline has the
whole recovery, so that the comparison needs no more pruning, only two forward passes of up to 16,384 tokens (or two
sequences, if these are longer). They are of the second half of the text, which the search did not see. The blocks of
the baseline stay on disk until then: where they are better, they are the result.
"""

from __future__ import annotations

import shutil
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hf_farms.blocks import StreamedBlockSource
from hf_farms.data.selection import split_selection
from hf_farms.errors import HfFarmsWarning, ModelError
from hf_farms.metrics.nll import TextNll, text_nll
from hf_farms.output.checkpoint import CheckpointWriter
from hf_farms.processes import from_first_rank
from hf_farms.progress import Progress, one_stage
from hf_farms.workflows.estimate import FINALIST_TOKENS
from hf_farms.workflows.texts import load_nll, save_nll

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from hf_farms.config import PruneConfig
    from hf_farms.loading.opening import LoadedModel
    from hf_farms.output.folder import OutputFolder

__all__ = ["Comparison", "RecoveredChoice"]

# In the state folder of unfinished work: NLL of uniform sparsity on the selection text and on the evaluation text.
UNIFORM_NAME, UNIFORM_PERPLEXITY = "uniform_selection.json", "uniform_perplexity.json"
# Fewer sequences give no advice: the errors of a few are too small too often.
SEQUENCES_AT_LEAST = 8


@dataclass(frozen=True)
class Comparison:
    """NLL of the selection text with the plan of a search and with uniform sparsity."""

    plan: TextNll
    uniform: TextNll

    @property
    def uniform_is_better(self) -> bool:
        """Whether uniform sparsity has the lower NLL."""
        return self.uniform.nll < self.plan.nll

    def sentence(self, *, taken: bool = False) -> str:
        """Return both NLLs and their paired difference.

        The error is that over sequences; another choice of calibration passages moves the difference too.

        Args:
            taken: whether uniform sparsity, which is better, is the result.
        """
        difference, error = self.plan.difference(self.uniform)
        text = (
            f"With the whole recovery, the NLL of {self.plan.num_tokens:,} tokens of the selection text, which the "
            f"search did not see, is {self.plan.nll:.3f} with its plan and {self.uniform.nll:.3f} with uniform sparsity"
        )
        if error is not None:
            text += f" ({difference:+.3f} ± {error:.3f})"
        if taken:
            text += ": the result has uniform sparsity"
        elif error is not None and difference > 2 * error and len(self.plan.windows) >= SEQUENCES_AT_LEAST:
            text += ": uniform sparsity was better on this text, try `allocation='uniform'`"
        return f"{text}."


class RecoveredChoice:
    """The NLL of the second half of the selection text, with the plan that was found and with uniform sparsity.

    Args:
        config: of the prune; for an allocation that searches nothing, or without a recovery, nothing is measured.
        selection: the selection text; its second half is measured.
        output: keeps the blocks with uniform sparsity, and their NLL.
        progress: called with every step.

    Attributes:
        folder: of the blocks with uniform sparsity.
        can_take_uniform: whether these blocks are kept until the comparison. Training of the whole model leaves none
            on disk.
    """

    def __init__(
        self, config: PruneConfig, selection: Sequence[Tensor], output: OutputFolder, progress: Progress
    ) -> None:
        self._needed = config.searches and config.recovers
        self.can_take_uniform = self._needed and not config.trains
        self._selection, self._output, self._progress = selection, output, progress
        self.folder = output.state / "uniform"

    def uniform_writer(self, loaded: LoadedModel) -> CheckpointWriter:
        """Return the writer of the blocks with uniform sparsity."""
        return CheckpointWriter(loaded.model, self.folder, len(loaded.source), records=self.folder / "blocks")

    def keeps_uniform(self, loaded: LoadedModel) -> bool:
        """Return whether all blocks with uniform sparsity are on disk."""
        writer = self.uniform_writer(loaded)
        return self.can_take_uniform and from_first_rank(
            lambda: all(writer.record(index) is not None for index in range(len(loaded.source))), self._output.ranks
        )

    def forget(self) -> None:
        """Delete the blocks with uniform sparsity."""
        if self._output.ranks.index == 0:
            shutil.rmtree(self.folder, ignore_errors=True)

    def measure_uniform(self, loaded: LoadedModel) -> None:
        """Measure the model that was pruned with uniform sparsity and recovered, and keep the result."""
        if not self._needed:
            return
        stage = "Uniform sparsity on the selection text"
        with self._warned():
            self._output.load_or_compute(UNIFORM_NAME, lambda: self._measure(loaded, stage), save_nll, load_nll)

    def compare(self, loaded: LoadedModel) -> Comparison | None:
        """Measure the result, and compare it with uniform sparsity; None where that was not measured."""
        uniform = self._output.load_saved(UNIFORM_NAME, load_nll) if self._needed else None
        if uniform is not None:
            with self._warned():
                return Comparison(self._measure(loaded, "The result on the selection text"), uniform)
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

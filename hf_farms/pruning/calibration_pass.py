"""The calibration data on its way through the blocks."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from torch import Tensor

from hf_farms.blocks import Block, BlockCall, BlockSource, TokenMask
from hf_farms.config import PruneConfig
from hf_farms.data.batches import named_batches
from hf_farms.errors import DataError, HfFarmsWarning
from hf_farms.processes import ONE_PROCESS, Ranks, WorkingRanks, assign_to_ranks
from hf_farms.progress import Progress
from hf_farms.pruning.hidden_states import HiddenStates
from hf_farms.pruning.measuring import Run
from hf_farms.registries import ALLOCATIONS, METHODS

__all__ = ["Batch", "CalibrationPass", "calibration_batches", "warn_of_idle_ranks"]

Batch = Tensor | Mapping[str, Tensor]


class CalibrationPass:
    """Hidden states of the calibration data in front of one block, moved on from block to block.

    Args:
        source: the blocks.
        batches: model inputs; without any, no block is run.
        hidden: keeps the hidden states between two blocks.
        progress: called with ("capture", batches done, batches in all).
        ranks: with several processes, each runs a share of the batches.
    """

    def __init__(
        self,
        source: BlockSource,
        batches: Sequence[Mapping[str, Tensor]],
        hidden: HiddenStates,
        progress: Progress,
        *,
        ranks: WorkingRanks = ONE_PROCESS,
    ) -> None:
        self.hidden, self._ranks = hidden, ranks
        batches = [batches[index] for index in _share(batches, ranks)]
        self._arguments: list[tuple[tuple[BlockCall, ...], ...]] = []
        if batches:
            progress("capture", 0, len(batches))
        for done, batch in enumerate(batches, 1):
            call = source.capture(batch, repeats=True)
            hidden.append(call.hidden)
            self._arguments.append(call.arguments)
            progress("capture", done, len(batches))
        self.token_masks = [
            TokenMask(batch["attention_mask"]) if "attention_mask" in batch else None for batch in batches
        ]

    def num_tokens(self, batches: int) -> int:
        """Return the number of tokens of the first batches, of each rank, that are not masked out."""
        pairs = list(zip(self.hidden.shapes, self.token_masks, strict=True))[:batches]
        own = sum(mask.num_tokens if mask else shape[:-1].numel() for shape, mask in pairs)
        return sum(self._ranks.gather(own))

    def runs(self, block: Block, index: int) -> list[Run]:
        """Return a run of this block for each batch of this rank."""
        return [(partial(self._run, block, index, batch), mask) for batch, mask in enumerate(self.token_masks)]

    def advance(self, block: Block, index: int) -> None:
        """Replace the hidden states by the outputs of this block."""
        for batch in range(len(self._arguments)):
            self.hidden[batch] = self._run(block, index, batch)

    def _run(self, block: Block, index: int, batch: int) -> Tensor:
        return block(self.hidden[batch], self._arguments[batch][index])


def _share(batches: Sequence[Mapping[str, Tensor]], ranks: Ranks) -> list[int]:
    """Return the indices of the batches of this rank: shares have about as many inputs."""
    if ranks.count == 1:
        return list(range(len(batches)))
    return assign_to_ranks([sum(v.numel() for v in batch.values()) for batch in batches], ranks.count)[ranks.index]


def warn_of_idle_ranks(batches: Sequence[object], ranks: Ranks) -> None:
    """Warn of more processes than batches: the others have nothing to run."""
    if 0 < len(batches) < ranks.count:
        warnings.warn(
            f"processes should be at most as many as calibration batches, got {ranks.count} for {len(batches)}: "
            "the others measure no activations. Start fewer.",
            HfFarmsWarning,
            stacklevel=6,
        )


def calibration_batches(
    calibration: Iterable[Batch] | None, source: BlockSource, config: PruneConfig
) -> list[dict[str, Tensor]]:
    """Return calibration data as inputs of the model by name, token ids with a batch dimension.

    Args:
        calibration: token ids `(b, n)` or `(n,)`, or model inputs by name.
        source: the model.
        config: needs calibration; names what needs it in the error.

    Raises:
        DataError: no data, no tokens, or token ids outside the vocabulary.
    """
    if calibration is None:
        choices = (
            ("method", METHODS[config.method].needs == "activations", config.method, "magnitude"),
            ("refine", config.measures_inputs, config.refine, "none"),
            ("allocation", ALLOCATIONS[config.allocation].needs_activations, config.allocation, "farms"),
            ("recover", config.recovers, config.recover, "none"),
        )
        option, _, name, other = next(choice for choice in choices if choice[1])
        raise DataError(
            f"calibration must be given for {option} {name!r}, got None.",
            hint=f"Pass token ids, or choose {option}={other!r}.",
        )
    return named_batches(calibration, vocabulary=source.vocabulary)

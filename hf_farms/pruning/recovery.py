"""The interface of recoveries: adjust the kept weights of a block after it was pruned, with its zeros fixed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from hf_farms.blocks import Block, BlockSource
from hf_farms.config import PruneConfig
from hf_farms.pruning.measuring import Run
from hf_farms.pruning.removal_plan import prunable_layers
from hf_farms.registries import RECOVERIES
from hf_farms.reports import AcceptanceRecord, BlockSparsity, RecoveredPart, acceptance_text

__all__ = [
    "BlockRecovery",
    "NoRecovery",
    "block_recovery",
    "few_sequences_note",
    "recovery_notes",
    "recovery_stage",
    "single_sequences",
]


class BlockRecovery(Protocol):
    """Recovery of one block."""

    def __init__(self, block: Block, folder: Path | None = None) -> None:
        """Keep a part of a block that is not pruned yet.

        Args:
            block: the block.
            folder: folder for tensors as large as the hidden states; None to keep them in memory.
        """

    def dense_run(self) -> AbstractContextManager[None]:
        """Return a context in which the block, not pruned yet, runs on the hidden states of the dense model."""

    def fit(
        self, runs: Sequence[Run], config: PruneConfig, acceptance: Sequence[Run] = ()
    ) -> tuple[RecoveredPart, ...]:
        """Adjust the kept weights of the pruned block in place.

        Args:
            runs: of the pruned block, one for each calibration sequence.
            config: options of the recovery.
            acceptance: runs on the sequences that decide whether a fit is kept; the block ran on them within
                `dense_run` after the others. Without any, some of `runs` are held out for it.

        Returns:
            Errors before and after, for each part that was fitted on its own.
        """


class NoRecovery:
    """Keep the weights that the method left."""

    def __init__(self, block: Block, folder: Path | None = None) -> None:
        """Keep nothing."""

    def dense_run(self) -> AbstractContextManager[None]:
        """Return a context that does nothing."""
        return nullcontext()

    def fit(
        self, runs: Sequence[Run], config: PruneConfig, acceptance: Sequence[Run] = ()
    ) -> tuple[RecoveredPart, ...]:
        """Return nothing."""
        return ()


def block_recovery(block: Block, config: PruneConfig, folder: Path | None = None) -> BlockRecovery:
    """Return the recovery of a block that is not pruned yet; arguments as of `BlockRecovery`."""
    recovery: BlockRecovery = RECOVERIES[config.recover].load()(block, folder)
    return recovery


def recovery_stage(source: BlockSource, config: PruneConfig, hidden_bytes: int) -> str | None:
    """Return the name of the stage for progress, with an upper bound of the memory; None without a recovery.

    Args:
        source: the blocks.
        config: names the recovery.
        hidden_bytes: size of the hidden states of calibration and acceptance sequences.
    """
    if RECOVERIES[config.recover].needs == "nothing":
        return None
    sizes = [
        sum(math.prod(layer.shape) for layer in prunable_layers(source.metadata(i).layers)) for i in range(len(source))
    ]
    itemsize = getattr(torch, source.dtype).itemsize
    # Dense weights and five float32 copies; two times hidden states as they are, and three times in float32.
    num_bytes = max(sizes) * (itemsize + 5 * 4) + hidden_bytes * (2 + 3 * 4 / itemsize)
    passes = "1 pass" if config.recover_passes == 1 else f"{config.recover_passes} passes"
    return f"recover ({passes}, up to {num_bytes / 2**30:.2f} GiB)"


def single_sequences(batches: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Split batches into sequences: a step of a recovery takes one of them.

    Batches whose inputs do not all have the sequences along their first dimension stay as they are.
    """
    sequences: list[dict[str, Tensor]] = []
    for batch in batches:
        sizes = {len(value) if isinstance(value, Tensor) and value.ndim else None for value in batch.values()}
        size = sizes.pop() if len(sizes) == 1 else None
        if size is None:
            sequences.append(dict(batch))
        else:
            sequences += [{name: value[i : i + 1] for name, value in batch.items()} for i in range(size)]
    return sequences


def few_sequences_note(batches: Sequence[object]) -> str | None:
    """Describe calibration data that leaves nothing to hold out; None if there are two sequences or more."""
    if len(batches) > 1:
        return None
    return (
        f"calibration should have at least 2 sequences for recovery, got {len(batches)}: the fit is accepted on the "
        "sequence that it was made on."
    )


def recovery_notes(blocks: Sequence[BlockSparsity], acceptance: AcceptanceRecord | None = None) -> list[str]:
    """Describe the submodules whose weights stay as they were, and the blocks that were fitted as a whole.

    Args:
        blocks: records of all blocks.
        acceptance: the text that accepted the fits; None: calibration sequences that were held out.
    """
    parts = [part for block in blocks for part in block.recovery]
    refused = [part.name for part in parts if not part.accepted]
    whole = [block.name for block in blocks if [part.name for part in block.recovery] == [block.name]]
    notes = []
    if refused:
        notes.append(
            f"Recovery did not lower the error of {len(refused)} of {len(parts)} submodules on "
            f"{acceptance_text(acceptance)}, first {refused[0]}: they have the weights that the method left."
        )
    if whole:
        notes.append(
            f"{len(whole)} of {len(blocks)} blocks, first {whole[0]}, do not have attention and feed-forward network "
            "as separate modules, and were fitted as a whole."
        )
    return notes

"""The interface of recoveries: adjust the kept weights of a block after it was pruned, with its zeros fixed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from hf_farms.blocks import Block, BlockSource
from hf_farms.config import PruneConfig
from hf_farms.progress import Progress
from hf_farms.pruning.hidden_states import HiddenStates
from hf_farms.pruning.measuring import Run
from hf_farms.pruning.removal_plan import prunable_layers
from hf_farms.pruning.training_folder import TrainingFolder
from hf_farms.registries import RECOVERIES
from hf_farms.reports import AcceptanceRecord, BlockSparsity, DistillationRecord, RecoveredPart, acceptance_text

__all__ = [
    "BlockRecovery",
    "NoRecovery",
    "block_config",
    "block_recovery",
    "check_checkpoints",
    "few_sequences_note",
    "passes_text",
    "recovery_notes",
    "recovery_stage",
    "single_sequences",
    "train_whole",
    "training_disk_bytes",
    "training_note",
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


def block_config(config: PruneConfig) -> PruneConfig:
    """Return the config of the recovery of single blocks: a recovery that trains the whole model starts from one."""
    first = RECOVERIES[config.recover].first
    return config if first is None else replace(config, recover=first, recover_passes=None, recover_rate=None)


def block_recovery(block: Block, config: PruneConfig, folder: Path | None = None) -> BlockRecovery:
    """Return the recovery of a block that is not pruned yet; arguments as of `BlockRecovery`."""
    recovery: BlockRecovery = RECOVERIES[block_config(config).recover].load()(block, folder)
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
    passes = passes_text(block_config(config).effective_passes)
    return f"recover ({passes}, up to {num_bytes / 2**30:.2f} GiB)"


def check_checkpoints(
    checkpoints: str | Path | None, config: PruneConfig, sequences: Sequence[Mapping[str, Tensor]]
) -> None:
    """Refuse a folder of another training before the model is pruned.

    Args:
        checkpoints: folder for checkpoints, or None.
        config: names the recovery.
        sequences: those to fit, and those that accept the result.

    Raises:
        OutputError: the folder holds something else.
    """
    if checkpoints is not None and config.trains:
        TrainingFolder(Path(checkpoints), config, sequences).check()


def train_whole(
    source: BlockSource,
    config: PruneConfig,
    sequences: tuple[Sequence[Mapping[str, Tensor]], Sequence[Mapping[str, Tensor]]],
    dense: HiddenStates,
    *,
    checkpoints: str | Path | None,
    progress: Progress,
) -> DistillationRecord | None:
    """Train the pruned model if the recovery of `config` does so; None for a recovery of single blocks.

    Args:
        source: the pruned model.
        config: names the recovery.
        sequences: model inputs by name, one sequence each: those to fit, and those that accept the result, if any.
        dense: hidden states of the dense model behind its last block, of the former and the latter.
        checkpoints: folder for checkpoints; None writes none.
        progress: called with every step.
    """
    if not config.trains:
        return None
    folder = Path(checkpoints) if checkpoints is not None else None
    # The training stands above this package, which knows it by name only.
    record: DistillationRecord = RECOVERIES[config.recover].load()(
        source, config, *sequences, dense, folder=folder, progress=progress
    )
    return record


def training_disk_bytes(source: BlockSource, config: PruneConfig) -> int:
    """Return the disk space of a recovery that trains the whole model; 0 for a recovery of single blocks.

    Two checkpoints, the last one and the next while it is written: the blocks and two moments of Adam, in float32; and
    the blocks as they were before.
    """
    if not config.trains:
        return 0
    blocks = [source.open(index) for index in range(len(source))]
    parameters = [parameter for block in blocks for parameter in block.module.parameters()]
    trained = sum(math.prod(layer.metadata.shape) for block in blocks for layer in prunable_layers(block.layers))
    everything = sum(parameter.numel() for parameter in parameters)
    return 2 * (4 * everything + 8 * trained) + sum(parameter.nbytes for parameter in parameters)


def passes_text(passes: int) -> str:
    """Return "1 pass" or "3 passes"."""
    return "1 pass" if passes == 1 else f"{passes} passes"


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


def training_note(record: DistillationRecord | None, acceptance: AcceptanceRecord | None = None) -> str | None:
    """Describe a training whose weights are not those of the model; None for any other.

    Args:
        record: of the training, if there was one.
        acceptance: the text that accepts it; None: calibration sequences that were held out.
    """
    if record is None or record.accepted:
        return None
    return (
        f"Distillation did not lower the KL to the dense model on {acceptance_text(acceptance)} "
        f"({record.divergence_before:.4g} nats per token before): the model has the weights from before."
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

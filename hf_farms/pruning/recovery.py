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

from hf_farms.blocks import Block, BlockSource, ModelBlockSource
from hf_farms.config import PruneConfig
from hf_farms.progress import Progress
from hf_farms.pruning.hidden_states import HiddenStates
from hf_farms.pruning.measuring import Run
from hf_farms.pruning.removal_plan import prunable_layers
from hf_farms.pruning.training_folder import TrainingFolder
from hf_farms.registries import RECOVERIES
from hf_farms.reports import DistillationRecord, RecoveredPart

__all__ = [
    "BlockRecovery",
    "NoRecovery",
    "block_config",
    "block_recovery",
    "check_checkpoints",
    "passes_text",
    "recovery_stage",
    "single_sequences",
    "train_whole",
    "training_disk_bytes",
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


def block_config(config: PruneConfig, count: int) -> PruneConfig:
    """Return the config of the recovery of single blocks: a recovery that trains the whole model starts from one.

    Args:
        config: names the recovery.
        count: calibration sequences.
    """
    first = RECOVERIES[config.recover].first
    if first is None:
        return replace(config, recover_passes=config.passes_over(count))
    # Neither recipe nor report has these passes, so that they must depend on nothing but the number of sequences.
    return replace(config, recover=first, recover_passes=RECOVERIES[first].default_passes(count), recover_rate=None)


def block_recovery(block: Block, config: PruneConfig, folder: Path | None = None) -> BlockRecovery:
    """Return the recovery of a block that is not pruned yet; arguments as of `BlockRecovery`."""
    recovery: BlockRecovery = RECOVERIES[RECOVERIES[config.recover].first or config.recover].load()(block, folder)
    return recovery


def recovery_stage(source: BlockSource, config: PruneConfig, hidden_bytes: int, count: int) -> str | None:
    """Return the name of the stage for progress, with an upper bound of the memory; None without a recovery.

    Args:
        source: the blocks.
        config: names the recovery.
        hidden_bytes: size of the hidden states of calibration and acceptance sequences.
        count: calibration sequences.
    """
    if not config.recovers:
        return None
    sizes = [
        sum(math.prod(layer.shape) for layer in prunable_layers(source.metadata(i).layers)) for i in range(len(source))
    ]
    itemsize = getattr(torch, source.dtype).itemsize
    # Dense weights and five float32 copies; two times hidden states as they are, and three times in float32.
    num_bytes = max(sizes) * (itemsize + 5 * 4) + hidden_bytes * (2 + 3 * 4 / itemsize)
    passes = passes_text(block_config(config, count).passes_over(count))
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
    everything = sum(parameter.numel() for parameter in parameters)
    trained = sum(math.prod(layer.metadata.shape) for block in blocks for layer in prunable_layers(block.layers))
    if config.recover_budget is not None:
        assert isinstance(source, ModelBlockSource), "streamed models were refused"
        # Of a selection, slices before and after are stored too: twice as much for each of its weights.
        trained = 2 * math.ceil(config.recover_budget * sum(p.numel() for p in source.model.parameters()))
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

"""Student: the blocks of a pruned model on the calibration data, as a Trainer sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from hf_farms.blocks import ModelBlockSource
from hf_farms.metrics.divergence import divergence_loss, final_hidden

__all__ = ["HiddenByIndex", "SequenceNumbers", "Student"]


class HiddenByIndex(Protocol):
    """Hidden states of the dense model behind its last block, by number of the batch."""

    def __getitem__(self, index: int, /) -> Tensor: ...


class SequenceNumbers(Dataset[dict[str, Tensor]]):
    """Numbers of sequences: the student has the sequences themselves, and the loss the dense hidden states.

    Args:
        numbers: of the sequences that are fitted.
    """

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = list(numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        number = torch.tensor(self._numbers[index])
        return {"sequence": number, "labels": number}


class Student(nn.Module):
    """The blocks as the only part of the model, so that checkpoints of a Trainer hold nothing else.

    It stays in evaluation mode: dropout would be noise in the loss.

    Args:
        source: the pruned model in memory.
        batches: model inputs by name, one sequence each.
        dense: hidden states of the dense model for each of them.
        bfloat16: compute the products of the head in bfloat16; the Trainer does so for the blocks.
    """

    def __init__(
        self,
        source: ModelBlockSource,
        batches: Sequence[Mapping[str, Tensor]],
        dense: HiddenByIndex,
        *,
        bfloat16: bool = False,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(source.modules)
        self._source, self._batches, self._dense = source, batches, dense
        self.last_loss, self._bfloat16 = float("nan"), bfloat16
        self.train(False)

    def train(self, mode: bool = True) -> Student:
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, sequence: Tensor) -> dict[str, Tensor]:
        """Return the hidden states behind the last block, for one sequence."""
        return {"hidden": final_hidden(self._source, self._batches[int(sequence)])}

    def loss(self, outputs: Mapping[str, Tensor], labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        """Return KL(dense || pruned) in nats per token; a `compute_loss_func` of the Trainer."""
        number = int(labels)
        with torch.autocast(labels.device.type, torch.bfloat16, enabled=self._bfloat16):
            loss = divergence_loss(self._source, self._batches[number], self._dense[number], outputs["hidden"])
        self.last_loss = float(loss.detach())
        return loss

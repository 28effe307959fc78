"""Store the hidden states of the calibration data between two blocks, in memory or in mapped files."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from hf_farms.files.atomic_writes import writing
from hf_farms.files.path_checks import check_file

__all__ = ["HiddenStates", "reserve"]


class HiddenStates:
    """Hidden states of the calibration data, one tensor per batch.

    Files are memory-mapped, so they count as page cache and not as memory of the process.

    Args:
        folder: folder for one file per batch; None to keep the tensors in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._tensors: list[Tensor] = []
        self._device = torch.device("cpu")

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def shapes(self) -> list[torch.Size]:
        """Shapes of all batches."""
        return [tensor.shape for tensor in self._tensors]

    @property
    def num_bytes(self) -> int:
        """Size of all batches."""
        return sum(tensor.nbytes for tensor in self._tensors)

    def append(self, hidden: Tensor) -> None:
        """Add the hidden states of one batch."""
        self._device = hidden.device
        if self._folder is not None:
            path = self._folder / f"{len(self)}.bin"
            reserve(path, hidden.nbytes, argument="activations")
            mapped = torch.from_file(str(path), shared=True, size=hidden.numel(), dtype=hidden.dtype)
            hidden = mapped.view(hidden.shape).copy_(hidden)
        self._tensors.append(hidden)

    def __getitem__(self, index: int) -> Tensor:
        """Return the hidden states of one batch, on their original device."""
        return self._tensors[index].to(self._device)

    def __setitem__(self, index: int, hidden: Tensor) -> None:
        if self._folder is not None:
            self._tensors[index].copy_(hidden)
        else:
            self._tensors[index] = hidden


def reserve(path: Path, size: int, *, argument: str) -> None:
    """Allocate a file on disk: writing to a mapped file without space left would kill the process.

    Args:
        path: the file.
        size: in bytes.
        argument: that the folder was given as, for errors.
    """
    with writing(path.parent):
        check_file(path, argument=argument)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)

"""The hidden states of the calibration data between two blocks."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from hf_farms.files.atomic_writes import writing
from hf_farms.files.path_checks import check_file

__all__ = ["Activations"]


class Activations:
    """Hidden states, one tensor for each batch, in memory or in a file each.

    Files are mapped: the system may drop what it has written, so that they count as page cache and not as memory of the
    process.

    Args:
        folder: for the files; None: memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._kept: list[Tensor] = []
        self._device = torch.device("cpu")

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def shapes(self) -> list[torch.Size]:
        """Of every batch."""
        return [tensor.shape for tensor in self._kept]

    def append(self, hidden: Tensor) -> None:
        """Keep the hidden states of one more batch."""
        self._device = hidden.device
        if self._folder is not None:
            path = self._folder / f"{len(self)}.bin"
            _reserve(path, hidden.nbytes)
            mapped = torch.from_file(str(path), shared=True, size=hidden.numel(), dtype=hidden.dtype)
            hidden = mapped.view(hidden.shape).copy_(hidden)
        self._kept.append(hidden)

    def __getitem__(self, index: int) -> Tensor:
        """Of one batch, on the device that it came from."""
        return self._kept[index].to(self._device)

    def __setitem__(self, index: int, hidden: Tensor) -> None:
        if self._folder is not None:
            self._kept[index].copy_(hidden)
        else:
            self._kept[index] = hidden


def _reserve(path: Path, size: int) -> None:
    """A mapped file that finds no space when it is written ends the process; one that is made finds out before."""
    with writing(path.parent):
        check_file(path, argument="activations")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)

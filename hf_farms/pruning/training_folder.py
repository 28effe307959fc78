"""The folder of checkpoints of a recovery that trains the whole model, with a file that tells trainings apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from hf_farms.config import PruneConfig
from hf_farms.errors import OutputError
from hf_farms.files.atomic_writes import write_text, writing

__all__ = ["TrainingFolder"]

# File that tells trainings apart.
KEY_NAME = "distillation.json"


class TrainingFolder:
    """A new folder, or that of the same training.

    Args:
        path: of the folder.
        config: passes and learning rate.
        sequences: model inputs by name, those to fit and those that accept the result.
    """

    def __init__(self, path: Path, config: PruneConfig, sequences: Sequence[Mapping[str, Tensor]]) -> None:
        self._path = path
        tensors = [(name, value) for batch in sequences for name, value in batch.items()]
        self._data = _digest(
            (config.passes_over(len(sequences)), config.effective_rate, config.recover_budget), tensors
        )

    def check(self) -> None:
        """Refuse a folder of other settings or data, before the model is pruned.

        Raises:
            OutputError: the folder holds something else.
        """
        self._check({"data": self._data})

    def mark(self, weights: Mapping[str, Tensor]) -> None:
        """Refuse the folder of other weights too, and mark a new one.

        Args:
            weights: at the start of the training.

        Raises:
            OutputError: the folder holds something else.
        """
        key = {"data": self._data, "weights": _digest((), list(weights.items()))}
        if self._check(key):
            return
        with writing(self._path):
            self._path.mkdir(parents=True, exist_ok=True)
            write_text(self._path / KEY_NAME, json.dumps(key) + "\n")

    def _check(self, key: dict[str, str]) -> bool:
        """Return whether the folder is that of the same training; False if it is new."""
        path, reason = self._path, "it holds other files"
        with suppress(OSError, ValueError):
            known = json.loads((path / KEY_NAME).read_text(encoding="utf-8"))
            if isinstance(known, dict) and key.items() <= known.items():
                return True
            reason = "its checkpoints belong to other settings, data or weights"
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise OutputError(
                f"checkpoints must be a new folder, or that of the same training, got {str(path)!r}: {reason}.",
                hint="Choose another folder, or delete this one to start again.",
            )
        return False


def _digest(settings: tuple[object, ...], tensors: Sequence[tuple[str, Tensor]]) -> str:
    """Return a hash of settings and tensors."""
    digest = hashlib.sha256(repr(settings).encode())
    for name, tensor in tensors:
        digest.update(repr((name, tensor.shape, tensor.dtype)).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()

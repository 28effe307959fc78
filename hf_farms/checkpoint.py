"""Checkpoints: write a model block by block, into a folder that appears when it is complete."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_farms.errors import OutputError
from hf_farms.reports import REPORT_NAME

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["CheckpointWriter", "OutputFolder", "writing"]

INDEX = "model.safetensors.index.json"


class OutputFolder:
    """A folder that appears when it is complete: the work goes to `DIR.partial`, which is renamed at the end.

    Args:
        path: the folder to be.
        overwrite: whether a folder that is there may be replaced.
    """

    def __init__(self, path: str | Path, *, overwrite: bool = False) -> None:
        self.path = Path(path)
        self.partial = self.path.with_name(self.path.name + ".partial")
        self._overwrite = overwrite

    def check(self) -> None:
        """Refuse what must not be replaced, before any work.

        Raises:
            OutputError: something is there that may not be replaced, or the parent cannot be written.
        """
        if self.path.is_file() or self.path.is_symlink():
            raise OutputError(f"output must be a folder, got the file {str(self.path)!r}. Choose another --output.")
        if self.path.is_dir() and any(self.path.iterdir()) and not self._overwrite:
            whose = (
                "an earlier result" if (self.path / REPORT_NAME).exists() else "a folder that hf-farms did not write"
            )
            raise OutputError(
                f"output must be a new folder, got {str(self.path)!r}, which is {whose}.",
                hint="Choose another --output, or replace it with --overwrite.",
            )
        if self.partial.exists() and not self._is_ours():
            raise OutputError(
                f"{str(self.partial)!r} is needed for unfinished work, but hf-farms did not write what is there.",
                hint="Move it away, or choose another --output.",
            )
        parent = next(p for p in self.path.absolute().parents if p.exists())
        if not os.access(parent, os.W_OK):
            raise OutputError(f"output must be in a folder that can be written, got {str(parent)!r}.")

    def _is_ours(self) -> bool:
        return not any(self.partial.iterdir()) or (self.partial / _MARK).exists()

    def create(self) -> Path:
        """Make an empty `DIR.partial`; an unfinished one of before is dropped."""
        if self.partial.exists():
            shutil.rmtree(self.partial)
        self.partial.mkdir(parents=True)
        (self.partial / _MARK).write_text("hf-farms writes here until everything is done.\n", encoding="utf-8")
        return self.partial

    def finish(self) -> Path:
        """Give the finished folder its name."""
        (self.partial / _MARK).unlink()
        old = self.path.with_name(self.path.name + ".old.partial")
        if self.path.exists():
            self.path.rename(old)
        self.partial.rename(self.path)
        shutil.rmtree(old, ignore_errors=True)
        return self.path


_MARK = ".hf-farms-unfinished"


class CheckpointWriter:
    """Write a model as a plain transformers checkpoint, one shard per block as each is finished.

    Memory grows with one block. Names on disk are those of transformers' own conversion mapping.

    Args:
        model: the model that is being pruned.
        folder: an existing folder.
        num_blocks: shards of blocks to come.
    """

    def __init__(self, model: PreTrainedModel, folder: Path, num_blocks: int) -> None:
        self._model, self._folder, self._shards = model, folder, num_blocks + 1
        self._weight_map: dict[str, str] = {}
        self._total_size = 0
        self._in_blocks: set[str] = set()

    def write_block(self, index: int, name: str, state: dict[str, Tensor]) -> None:
        """Write the shard of one finished block; the signature of `ModelBlockSource`'s `on_commit`."""
        from transformers.core_model_loading import revert_weight_conversion

        named = {f"{name}.{key}": value for key, value in state.items()}
        self._in_blocks |= named.keys()
        on_disk = revert_weight_conversion(self._model, named)
        shard = {key: value.detach().cpu().contiguous() for key, value in on_disk.items()}
        file = self._shard_name(index)
        with writing(self._folder):
            save_file(shard, self._folder / file, metadata={"format": "pt"})
        self._add(shard, file)

    def finish(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Write what is outside the blocks, the index, the configs and the tokenizer."""
        rest = {key: value for key, value in self._model.state_dict().items() if key not in self._in_blocks}
        with writing(self._folder):
            # transformers itself drops tied weights and writes config, generation config and custom code. In a folder
            # of its own, because it deletes the shards of others.
            aside = self._folder / "rest"
            self._model.save_pretrained(aside, state_dict=rest, max_shard_size="1000TB")
            file = self._shard_name(self._shards - 1)
            (aside / "model.safetensors").rename(aside / file)
            for written in aside.iterdir():
                written.rename(self._folder / written.name)
            aside.rmdir()
            self._add(load_file(self._folder / file), file)
            index = {"metadata": {"total_size": self._total_size}, "weight_map": dict(sorted(self._weight_map.items()))}
            (self._folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
            if tokenizer is not None:
                tokenizer.save_pretrained(self._folder)

    def _shard_name(self, index: int) -> str:
        return f"model-{index + 1:05d}-of-{self._shards:05d}.safetensors"

    def _add(self, tensors: dict[str, Tensor], file: str) -> None:
        self._weight_map |= dict.fromkeys(tensors, file)
        self._total_size += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a full disk or a refused write into one sentence.

    Raises:
        OutputError: the file could not be written.
    """
    try:
        yield
    except Exception as error:  # safetensors raises its own class for a failed write
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        if not full and not isinstance(error, OSError) and "I/O error" not in str(error):
            raise
        reason = "the disk is full" if full else str(error)
        raise OutputError(
            f"{str(folder)!r} could not be written: {reason}.",
            hint="Free some space or choose another --output, and run the same command again.",
        ) from error

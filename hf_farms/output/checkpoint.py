"""Write a transformers checkpoint block by block."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from hf_farms.blocks import TensorFiles
from hf_farms.files.atomic_writes import replacing, write_text, writing
from hf_farms.files.names import WEIGHTS, WEIGHTS_INDEX
from hf_farms.files.path_checks import check_replaceable, check_within
from hf_farms.output.code_references import drop_code_references

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["CheckpointWriter"]


class CheckpointWriter:
    """Write a model as a plain transformers checkpoint, one shard per block as each is finished.

    Memory use is one block. Names on disk come from transformers' own conversion mapping. Shards and records are
    written atomically, and a block is finished when both exist, so a killed process leaves no partial file. Files are
    not synced: a power failure may lose more.

    Args:
        model: the model that is being pruned.
        folder: an existing folder. Blocks that an earlier writer finished in it stay finished.
        num_blocks: the number of blocks, one shard each.
        records: a folder for the records of finished blocks and for temporary files; on the same disk.
        absent: names of weights that the checkpoint lacks and that are not written.
    """

    def __init__(
        self, model: PreTrainedModel, folder: Path, num_blocks: int, *, records: Path, absent: Collection[str] = ()
    ) -> None:
        self._model, self._folder, self._shards = model, folder, num_blocks + 1
        self._records, self._absent = records, frozenset(absent)

    def write(self, index: int, name: str, state: dict[str, Tensor], record: Mapping[str, Any]) -> None:
        """Write the shard and the record of one finished block.

        Args:
            index: of the block.
            name: of the block's module.
            state: the state dict of the block; not modified.
            record: JSON data to store with the block.

        Raises:
            OutputError: the file could not be written.
        """
        from transformers.core_model_loading import revert_weight_conversion

        on_disk = revert_weight_conversion(self._model, {f"{name}.{key}": value for key, value in state.items()})
        shard = _without_shared_memory({key: value.detach().cpu().contiguous() for key, value in on_disk.items()})
        with writing(self._folder):
            self._records.mkdir(parents=True, exist_ok=True)
            with replacing(self._folder / self._shard_name(index), aside=self._records) as path:
                save_file(shard, path, metadata={"format": "pt"})
            write_text(self._record_path(index), json.dumps(record))

    def record(self, index: int) -> Mapping[str, Any] | None:
        """Return the record of a finished block; None: it is not finished."""
        if not self._record_path(index).exists() or not (self._folder / self._shard_name(index)).exists():
            return None
        return cast("Mapping[str, Any]", json.loads(self._record_path(index).read_text(encoding="utf-8")))

    def tensors(self, index: int) -> TensorFiles:
        """Return the weights of a finished block."""
        return TensorFiles([self._folder / self._shard_name(index)], mapped=False)

    def adopt(self, other: CheckpointWriter) -> None:
        """Move the blocks that another writer finished here, in place of those of this one.

        A move that was interrupted goes on: files that were moved before stay.

        Args:
            other: a writer of the same model in another folder of the same disk.

        Raises:
            OutputError: a file could not be moved, or is a link or device.
        """
        with writing(self._folder):
            self._records.mkdir(parents=True, exist_ok=True)
            for index in range(self._shards - 1):
                name = self._shard_name(index)
                moves = {
                    other._folder / name: self._folder / name,
                    other._record_path(index): self._record_path(index),
                }
                for source, target in moves.items():
                    if source.exists():
                        check_replaceable(target)
                        source.replace(target)

    def finish(self, tokenizer: PreTrainedTokenizerBase | None, blocks: Collection[str]) -> None:
        """Write the weights outside the blocks, the index, the configs and the tokenizer.

        Args:
            tokenizer: saved with the model; None: none.
            blocks: names of the block modules.

        Raises:
            OutputError: a file could not be written, or is a link or device.
        """
        prefixes = tuple(f"{name}." for name in blocks)
        rest = {
            key: value
            for key, value in self._model.state_dict().items()
            if not key.startswith(prefixes) and key not in self._absent
        }
        with writing(self._folder):
            # save_pretrained drops tied weights and writes config, generation config and custom code. It writes to a
            # separate folder, because it would delete the shards of the blocks.
            aside = self._records / "rest"
            shutil.rmtree(aside, ignore_errors=True)
            self._model.save_pretrained(aside, state_dict=rest, max_shard_size="1000TB")
            if tokenizer is not None:
                tokenizer.save_pretrained(aside)
            drop_code_references(aside)
            (aside / WEIGHTS).rename(aside / self._shard_name(self._shards - 1))
            check_within(self._folder, [file.name for file in aside.iterdir()])
            for file in aside.iterdir():
                file.replace(self._folder / file.name)
            aside.rmdir()
            with replacing(self._folder / WEIGHTS_INDEX, aside=self._records) as path:
                path.write_text(json.dumps(self._index(), indent=2) + "\n", encoding="utf-8")

    @property
    def shards(self) -> list[str]:
        """Names of all shards: the weights outside the blocks, such as embeddings, then the blocks."""
        return [self._shard_name(index) for index in (self._shards - 1, *range(self._shards - 1))]

    def _index(self) -> dict[str, Any]:
        """Return the index of the shards, read from the shards themselves: an earlier run may have written some."""
        weight_map: dict[str, str] = {}
        total = 0
        for index in range(self._shards):
            file = self._shard_name(index)
            with safe_open(self._folder / file, framework="pt") as shard:
                weight_map |= dict.fromkeys(shard.keys(), file)
                total += sum(shard.get_tensor(name).nbytes for name in shard.keys())  # noqa: SIM118 - no mapping
        return {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}

    def _shard_name(self, index: int) -> str:
        return f"model-{index + 1:05d}-of-{self._shards:05d}.safetensors"

    def _record_path(self, index: int) -> Path:
        return self._records / f"{index:05d}.json"


def _without_shared_memory(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that share memory (tied inside a block), which safetensors refuses to save."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return separate

"""The blocks of a checkpoint on disk. The model is never built: its weights are read one at a time."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from hf_farms.blocks.checkpoint_tensors import StoredTensors, TensorFiles
from hf_farms.blocks.discovery import describe_blocks, find_outside
from hf_farms.blocks.layers import BlockMetadata, LayerMetadata, LayerView
from hf_farms.blocks.protocols import Block
from hf_farms.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["StoredBlockReader"]


class StoredBlockReader:
    """The blocks of a checkpoint on disk, to be read.

    Memory: one layer at a time. Files are memory-mapped, so what is read counts as page cache and not as memory of the
    process; a layer that lies apart in a file is not even copied.

    Args:
        name: hub id or folder, for reports.
        model: the architecture on the meta device, without weights.
        files: the tensors on disk.
        absent: parameters that the files need not hold; layers outside of the blocks that are made of them are left
            out.

    Raises:
        ModelError: the architecture has no layers, or the files lack some of their weights.
    """

    def __init__(self, name: str, model: PreTrainedModel, files: TensorFiles, *, absent: Collection[str] = ()) -> None:
        self.name, self.model_type = name, str(model.config.model_type)
        self._model = model
        self._store = _Store(StoredTensors(files, model))
        self._modules, self._metadata = describe_blocks(cast(nn.Module, model))
        outside = find_outside(cast(nn.Module, model))
        self.outside = tuple(self._view(layer) for layer in outside if layer.parameter not in absent)
        self._check()

    def __len__(self) -> int:
        """How many blocks."""
        return len(self._metadata)

    def metadata(self, index: int) -> BlockMetadata:
        """Names, roles and shapes of one block."""
        return self._metadata[index]

    def open(self, index: int) -> Block:
        """The block, whose layers can be read; its module has no weights."""
        metadata = self._metadata[index]
        return Block(metadata, self._modules[index], tuple(self._view(layer) for layer in metadata.layers))

    def _view(self, layer: LayerMetadata) -> LayerView:
        return LayerView(layer, self._store)

    def _check(self) -> None:
        layers = [layer for block in self._metadata for layer in block.layers]
        layers += [view.metadata for view in self.outside]
        missing = [layer.parameter for layer in layers if not self._store.tensors.has(layer.parameter)]
        known = self._model.state_dict().keys()
        if missing and missing[0] not in known:
            raise ModelError(
                f"weights must be stored as they are, got one that torch computes from others (weight norm, for one) "
                f"in {missing[0]}.",
                hint="Load the model and measure it in memory: hf_farms.analyze(model).",
            )
        if missing:
            raise ModelError(
                f"checkpoint must hold every weight, got {len(set(missing))} missing, first {missing[0]}.",
                hint="Check that all shards are there and that config.json is of this model.",
            )


@dataclass(frozen=True)
class _Store:
    """The weight of a layer in the files."""

    tensors: StoredTensors

    def read(self, layer: LayerMetadata) -> Tensor:
        """The layer's part of the parameter."""
        if layer.part.expert is not None:
            return layer.part.rows_of(self.tensors.read_expert(layer.parameter, layer.part.expert))
        return layer.part.of(self.tensors.read(layer.parameter))

    def write(self, layer: LayerMetadata, weight: Tensor) -> None:
        """Refused: the files are not changed."""
        raise ModelError(f"a checkpoint on disk is only read, got a weight to write for {layer.name}.")

"""StoredBlockReader: read the blocks of a checkpoint on disk, one weight at a time, without building the model."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from hf_farms.blocks.checkpoint_tensors import StoredTensors
from hf_farms.blocks.discovery import describe_blocks, find_embeddings_and_head
from hf_farms.blocks.layers import BlockMetadata, LayerMetadata, LayerView
from hf_farms.blocks.protocols import Block
from hf_farms.blocks.tensor_files import TensorFiles
from hf_farms.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["StoredBlockReader"]


class StoredBlockReader:
    """Blocks of a checkpoint on disk, read only.

    Memory: one layer at a time. Files are memory-mapped, so weights count as page cache and not as memory of the
    process; a layer that is contiguous in a file is not copied.

    Args:
        name: hub id or folder, for reports.
        model: the architecture on the meta device, without weights.
        files: the tensors on disk.
        absent: parameters that may be missing from the files. Embeddings and heads among them are left out.

    Raises:
        ModelError: the architecture has no layers, or weights are missing from the files.
    """

    def __init__(self, name: str, model: PreTrainedModel, files: TensorFiles, *, absent: Collection[str] = ()) -> None:
        self.name, self.model_type = name, str(model.config.model_type)
        self._model = model
        self._store = _Store(StoredTensors(files, model))
        self._modules, self._metadata = describe_blocks(cast(nn.Module, model))
        outside = find_embeddings_and_head(cast(nn.Module, model))
        self.outside = tuple(self._view(layer) for layer in outside if layer.parameter not in absent)
        self._require_stored_weights()

    def __len__(self) -> int:
        """Return the number of blocks."""
        return len(self._metadata)

    def metadata(self, index: int) -> BlockMetadata:
        """Return names, roles and shapes of one block."""
        return self._metadata[index]

    def open(self, index: int) -> Block:
        """Return a block whose layers can be read; its module has no weights."""
        metadata = self._metadata[index]
        return Block(metadata, self._modules[index], tuple(self._view(layer) for layer in metadata.layers))

    def _view(self, layer: LayerMetadata) -> LayerView:
        return LayerView(layer, self._store)

    def _require_stored_weights(self) -> None:
        layers = [layer for block in self._metadata for layer in block.layers]
        layers += [view.metadata for view in self.outside]
        missing = [layer.parameter for layer in layers if not self._store.tensors.has(layer.parameter)]
        known = self._model.state_dict().keys()
        if missing and missing[0] not in known:
            raise ModelError(
                f"weights must be stored directly, got one that torch computes from other parameters (for example "
                f"weight norm) in {missing[0]}.",
                hint="Load the model and measure it in memory: hf_farms.analyze(model).",
            )
        if missing:
            raise ModelError(
                f"checkpoint must hold every weight, got {len(set(missing))} missing, first {missing[0]}.",
                hint="Check that all shards are present and that config.json belongs to this model.",
            )


@dataclass(frozen=True)
class _Store:
    """Layer weights in the files."""

    tensors: StoredTensors

    def read(self, layer: LayerMetadata) -> Tensor:
        """Read the layer's part of the parameter."""
        if layer.part.expert is not None:
            return layer.part.rows_of(self.tensors.read_expert(layer.parameter, layer.part.expert))
        return layer.part.of(self.tensors.read(layer.parameter))

    def write(self, layer: LayerMetadata, weight: Tensor) -> None:
        """Raise: the files are read only."""
        raise ModelError(f"a checkpoint on disk must not be modified, got a write to {layer.name}.")

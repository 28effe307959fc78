"""ModelBlockSource: the blocks of a model in memory."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from hf_farms.blocks.adapters import BASE
from hf_farms.blocks.checkpoint_tensors import StoredTensors
from hf_farms.blocks.discovery import find_embeddings_and_head
from hf_farms.blocks.layers import LayerMetadata, LayerView
from hf_farms.blocks.model_checks import check_not_fsdp1
from hf_farms.blocks.protocols import Block, BlockResults, Record
from hf_farms.blocks.running import RunnableBlocks
from hf_farms.blocks.weights import ModuleStore, count_zeros
from hf_farms.blocks.wrappers import unwrapped

__all__ = ["ModelBlockSource"]


class ModelBlockSource(RunnableBlocks):
    """The blocks of a model in memory.

    Args:
        model: any model with layers. Wrappers around it (PEFT, DDP, torch.compile) are removed; names are those of the
            model inside.
        results: store of finished blocks. Blocks that it already contains replace those of the model.

    Raises:
        ModelError: the model has no layers, or FSDP1 has wrapped it.
    """

    def __init__(self, model: nn.Module, *, results: BlockResults | None = None) -> None:
        check_not_fsdp1(model)
        model = unwrapped(model)
        config = getattr(model, "config", None)
        super().__init__(model)
        self.model_type: str = getattr(config, "model_type", "") or type(model).__name__
        self.name: str = getattr(config, "_name_or_path", "") or type(model).__name__
        self.dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        self.vocabulary: int | None = getattr(config, "vocab_size", None)
        # Per block, its parameters that an earlier block owns, with index and name there.
        self._shared_with: list[dict[str, tuple[int, str]]] = _shared_parameters(self.modules)
        self.outside = tuple(self._view(layer) for layer in find_embeddings_and_head(model))
        # Blocks as they were before `attach` replaced their weights; None if no copy was kept.
        self._dense: dict[int, nn.Module | None] = {}
        self.results: BlockResults | None = None
        if results is not None:
            self.attach(results)

    def open(self, index: int) -> Block:
        """Return the block itself; nothing is copied."""
        metadata = self._metadata[index]
        return Block(metadata, self.modules[index], tuple(self._view(layer) for layer in metadata.layers))

    def open_dense(self, index: int) -> Block:
        """Return the block; of one that was finished before `attach`, the copy that was kept, and forget it.

        Raises:
            ValueError: no copy was kept.
        """
        module = self._dense.pop(index, self.modules[index])
        if module is None:
            raise ValueError(
                f"results must be attached with keep_dense=True to open dense blocks, got block {index} without a copy."
            )
        return Block(self._metadata[index], module, ())

    def _view(self, layer: LayerMetadata) -> LayerView:
        path, _, attribute = layer.parameter.rpartition(".")
        while path.endswith(f".{BASE}"):
            path = path.removesuffix(f".{BASE}")
        module = self.model.get_submodule(path)
        return LayerView(layer, ModuleStore(module, attribute), module)

    def attach(self, results: BlockResults, *, keep_dense: bool = False) -> None:
        """Write finished blocks to `results` from now on, and load the blocks that it already contains.

        Args:
            results: store of finished blocks.
            keep_dense: keep copies of the blocks that are replaced, for `open_dense`.
        """
        self.results = results
        for index in range(len(self)):
            if results.record(index) is not None:
                self._dense[index] = copy.deepcopy(self.modules[index]) if keep_dense else None
                stored = StoredTensors(results.tensors(index), self.model)
                name = self._metadata[index].name
                with torch.no_grad():
                    for key, tensor in self._own_state(index).items():
                        tensor.copy_(stored.read(f"{name}.{key}"))

    def commit(self, index: int, record: Record) -> None:
        """Write a finished block to the results."""
        if self.results is not None:
            self.results.write(index, self._metadata[index].name, self._own_state(index), record)

    def _own_state(self, index: int) -> dict[str, Tensor]:
        """Return the state of a block without weights that an earlier block owns: they are stored there."""
        state = self.modules[index].state_dict()
        return {key: tensor for key, tensor in state.items() if key not in self._shared_with[index]}

    def finished(self, index: int) -> Record | None:
        """Return the record of a finished block, or None."""
        return self.results.record(index) if self.results is not None else None

    def count_parameters(self) -> tuple[int, int]:
        """Count all parameters and those that are zero; tied parameters count once."""
        parameters = list(self.model.parameters())
        return sum(p.numel() for p in parameters), sum(map(count_zeros, parameters))


def _shared_parameters(modules: list[nn.Module]) -> list[dict[str, tuple[int, str]]]:
    """Map, per block, each parameter that an earlier block owns to index and name there."""
    homes: dict[int, tuple[int, str]] = {}
    shared: list[dict[str, tuple[int, str]]] = []
    for index, module in enumerate(modules):
        named = list(module.named_parameters(remove_duplicate=False))
        shared.append({name: homes[id(p)] for name, p in named if id(p) in homes})
        homes |= {id(p): (index, name) for name, p in named if id(p) not in homes}
    return shared

"""StreamedBlockSource: run and modify the blocks of a checkpoint on disk, one block in memory at a time."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from hf_farms.blocks.checkpoint_tensors import StoredTensors
from hf_farms.blocks.in_memory import ModelBlockSource
from hf_farms.blocks.protocols import Block, BlockResults, Record
from hf_farms.blocks.tensor_files import TensorFiles
from hf_farms.blocks.unsaved_tensors import compute_unsaved, replacement_for
from hf_farms.blocks.weights import count_zeros
from hf_farms.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["StreamedBlockSource", "align_weights"]

# Alignment of torch's allocator, in bytes. Some kernels sum in another order at other alignments, and the bits of a
# result must not depend on offsets in a file.
ALIGNMENT = 64

# Parameter or buffer on the meta device: its module, whether it is a parameter, its name there, its meta tensor.
Blank = tuple[nn.Module, bool, str, Tensor]


class StreamedBlockSource(ModelBlockSource):
    """Blocks of a checkpoint on disk that can be run and modified.

    Memory of the process: embeddings, norm and head, buffers that no file holds, one block, and up to a second block
    while one is read or written. A finished block is read again from the results.

    Args:
        model: the architecture on the meta device, with the dtypes of the weights to load; its blocks stay there.
        files: the tensors on disk, not mapped.
        device: device on which blocks run.
        results: store of finished blocks, written and read.
        absent: parameters that may be missing from the files; they are initialized as in an untrained model.

    Raises:
        ModelError: the architecture has no layers, or weights are missing from the files.
    """

    in_memory = False

    def __init__(
        self,
        model: PreTrainedModel,
        files: TensorFiles,
        *,
        device: str | torch.device = "cpu",
        results: BlockResults | None = None,
        absent: Collection[str] = (),
    ) -> None:
        self._device = torch.device(device)
        self._current: int | None = None
        self._zeros: dict[int, int] = {}
        super().__init__(cast(nn.Module, model), results=results)
        self._stored = StoredTensors(files, model)
        self._placed: dict[int, Tensor] = {}
        self._require_complete(absent)
        inside = {module for block in self.modules for module in block.modules()}
        resident = [(name, module) for name, module in self.model.named_modules() if module not in inside]
        self._blanks: list[Blank] = []
        self._num_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self._never_saved = compute_unsaved(self.model, self._stored, self._device)
        self._place(resident, self._stored)
        # Tensors that stay in memory; blocks may share them.
        self._shared, self._blanks = self._placed, []

    def _require_complete(self, absent: Collection[str]) -> None:
        names = [name for name, _ in self.model.named_parameters() if name not in absent]
        missing = [name for name in names if not self._stored.has(name) and not self._is_optional(name)]
        if missing:
            raise ModelError(
                f"checkpoint must hold every weight, got {len(missing)} missing, first {missing[0]}.",
                hint="Check that all shards are present and that config.json belongs to this model.",
            )

    def _is_optional(self, parameter: str) -> bool:
        """Return whether the model allows the parameter to be missing, such as sinusoidal positions."""
        patterns: Iterable[str] = getattr(self.model, "_keys_to_ignore_on_load_missing", None) or ()
        return any(re.search(pattern, parameter) for pattern in patterns)

    @property
    def device(self) -> torch.device:
        """Device of the blocks."""
        return self._device

    def attach(self, results: BlockResults, *, keep_dense: bool = False) -> None:
        """Write finished blocks to `results` from now on, and read the blocks that it already contains from there.

        Args:
            results: store of finished blocks.
            keep_dense: no effect, as dense blocks can always be read.
        """
        self._release()
        self.results = results
        self._zeros.clear()

    def open(self, index: int) -> Block:
        """Return a block, read from disk unless it is the one that was opened last."""
        if index != self._current:
            self._load(index, self._tensors_of(index))
            self._current = index
        return super().open(index)

    def open_dense(self, index: int) -> Block:
        """Return a block, read from the files of the model."""
        if self.finished(index) is None:
            return self.open(index)
        # Not the current block: `open` must read the finished weights again.
        self._load(index, self._stored)
        return super().open(index)

    def _load(self, index: int, tensors: StoredTensors) -> None:
        """Read a block from disk in place of the one in memory."""
        self._release()
        block, name = self.modules[index], self._metadata[index].name
        self._placed = dict(self._shared)
        self._load_shared(index)
        modules = [(f"{name}.{n}" if n else name, module) for n, module in block.named_modules()]
        self._place(modules, tensors)

    def _tensors_of(self, index: int) -> StoredTensors:
        """Return the tensors of a block: from the results once it is finished."""
        if self.results is not None and self.results.record(index) is not None:
            return StoredTensors(self.results.tensors(index), self.model)
        return self._stored

    def _load_shared(self, index: int) -> None:
        """Read the parameters that an earlier block owns."""
        homes: dict[int, StoredTensors] = {}
        for name, (home, key) in self._shared_with[index].items():
            blank = self.modules[index].get_parameter(name)
            if id(blank) not in self._placed:
                stored = homes.setdefault(home, self._tensors_of(home))
                self._placed[id(blank)] = self._read(blank, stored, f"{self._metadata[home].name}.{key}")

    def _read(self, blank: Tensor, stored: StoredTensors, name: str) -> Tensor:
        return replacement_for(blank, _aligned(stored.read(name), blank.dtype, self._device))

    def commit(self, index: int, record: Record) -> None:
        """Write a finished block to the results; the next one that is opened replaces it in memory."""
        super().commit(index, record)
        self._zeros[index] = self._count_zeros(index)

    def count_parameters(self) -> tuple[int, int]:
        """Count all parameters and those that are zero; tied parameters count once."""
        resident = {id(tensor): tensor for tensor in self._shared.values() if isinstance(tensor, nn.Parameter)}
        zeros = sum(map(count_zeros, [*resident.values(), *self._never_saved]))
        for index in range(len(self)):
            if index not in self._zeros:
                self._zeros[index] = self._count_zeros(index)
        return self._num_parameters, zeros + sum(self._zeros.values())

    def _count_zeros(self, index: int) -> int:
        self.open(index)
        loaded = map(self.modules[index].get_parameter, self._shared_with[index])
        shared = [*self._shared.values(), *self._never_saved, *loaded]
        own = [p for p in self.modules[index].parameters() if not any(p is other for other in shared)]
        return sum(map(count_zeros, own))

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Make the whole model callable within the context; every call reads all blocks from disk."""

        def load(index: int) -> Any:
            return lambda _module, _args: self.open(index) and None

        handles = [module.register_forward_pre_hook(load(index)) for index, module in enumerate(self.modules)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _release(self) -> None:
        """Move the block that is in memory back to the meta device."""
        for module, is_parameter, name, blank in self._blanks:
            (module._parameters if is_parameter else module._buffers)[name] = cast(Any, blank)
        self._blanks, self._current = [], None

    def _place(self, modules: Iterable[tuple[str, nn.Module]], stored: StoredTensors) -> None:
        """Load weights and stored buffers into modules on the meta device."""
        for path, module in modules:
            for is_parameter, tensors in ((True, module._parameters), (False, module._buffers)):
                for name, blank in list(tensors.items()):
                    if blank is None or not blank.is_meta:
                        continue
                    self._blanks.append((module, is_parameter, name, blank))
                    if id(blank) not in self._placed:
                        self._placed[id(blank)] = self._read(blank, stored, f"{path}.{name}" if path else name)
                    tensors[name] = cast(Any, self._placed[id(blank)])


def _aligned(tensor: Tensor, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Tensor:
    tensor = tensor.to(device=device, dtype=dtype)
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor


def align_weights(model: nn.Module) -> None:
    """Copy tensors that are not aligned in memory, so that results do not depend on file offsets bit by bit."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = _aligned(tensor.data)

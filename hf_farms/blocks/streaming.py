"""The blocks of a checkpoint on disk, to be run and changed: one of them in memory at a time."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from hf_farms.blocks.checkpoint_tensors import StoredTensors, TensorFiles
from hf_farms.blocks.in_memory import ModelBlockSource
from hf_farms.blocks.protocols import Block, BlockResults, Record
from hf_farms.blocks.weights import count_zeros
from hf_farms.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["StreamedBlockSource", "align_weights"]

# What torch itself aligns to. Some kernels add in another order at other addresses, and the bits of a result must not
# depend on where a file had its tensors.
ALIGNMENT = 64

# A parameter or buffer that is not in memory: its module, whether it is a parameter, its name there, its meta tensor.
Blank = tuple[nn.Module, bool, str, Tensor]


class StreamedBlockSource(ModelBlockSource):
    """The blocks of a checkpoint on disk, to be run and changed.

    Memory of the process: embeddings, norm and head, buffers that no file holds, one block, and while it is read or
    written up to another one. A finished block is read again from where it was written.

    Args:
        model: the architecture on the meta device, with the dtypes that the weights are to have; its blocks stay there.
        files: the tensors on disk, not mapped.
        device: where blocks run; it holds what was said above.
        results: where finished blocks go, and come from.
        absent: parameters that the files need not hold; they get the numbers that an untrained model has.

    Raises:
        ModelError: the architecture has no layers, or the files lack some of its weights.
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
        self._check_complete(absent)
        inside = {module for block in self.modules for module in block.modules()}
        outside = [(name, module) for name, module in self.model.named_modules() if module not in inside]
        self._blanks: list[Blank] = []
        self._num_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self._never_saved: list[nn.Parameter] = []
        self._compute()
        self._place(outside, self._stored)
        # Those of what stays in memory: two modules may share one.
        self._shared, self._blanks = self._placed, []

    def _check_complete(self, absent: Collection[str]) -> None:
        names = [name for name, _ in self.model.named_parameters() if name not in absent]
        missing = [name for name in names if not self._stored.has(name) and not self._is_computed(name)]
        if missing:
            raise ModelError(
                f"checkpoint must hold every weight, got {len(missing)} missing, first {missing[0]}.",
                hint="Check that all shards are there and that config.json is of this model.",
            )

    def _is_computed(self, parameter: str) -> bool:
        """Whether it is one that models do not save and compute on loading, such as sinusoidal positions."""
        patterns: Iterable[str] = getattr(self.model, "_keys_to_ignore_on_load_missing", None) or ()
        return any(re.search(pattern, parameter) for pattern in patterns)

    @property
    def device(self) -> torch.device:
        """Where the blocks run."""
        return self._device

    def attach(self, results: BlockResults) -> None:
        """Send finished blocks there from now on, and read from there what an earlier run finished."""
        self._release()
        self.results = results
        self._zeros.clear()

    def open(self, index: int) -> Block:
        """The block, read from disk unless it is the one that was opened last."""
        if index != self._current:
            self._release()
            block, name = self.modules[index], self._metadata[index].name
            self._placed = dict(self._shared)
            self._borrow(index)
            modules = [(f"{name}.{n}" if n else name, module) for n, module in block.named_modules()]
            self._place(modules, self._newest(index))
            self._current = index
        return super().open(index)

    def _newest(self, index: int) -> StoredTensors:
        """Where the block lies: among the results once it is finished."""
        if self.results is not None and self.results.record(index) is not None:
            return StoredTensors(self.results.tensors(index), self.model)
        return self._stored

    def _borrow(self, index: int) -> None:
        """Read what the block has from an earlier one from there."""
        homes: dict[int, StoredTensors] = {}
        for name, (home, key) in self._shared_with[index].items():
            blank = self.modules[index].get_parameter(name)
            if id(blank) not in self._placed:
                stored = homes.setdefault(home, self._newest(home))
                self._placed[id(blank)] = self._read(blank, stored, f"{self._metadata[home].name}.{key}")

    def _read(self, blank: Tensor, stored: StoredTensors, name: str) -> Tensor:
        return _like(blank, _aligned(stored.read(name), blank.dtype, self._device))

    def commit(self, index: int, record: Record) -> None:
        """Hand the finished block to the results; the next one that is opened takes its place."""
        super().commit(index, record)
        self._zeros[index] = self._count_zeros(index)

    def count_parameters(self) -> tuple[int, int]:
        """Parameters of the whole model, tied ones once, and how many of them are zero."""
        outside = {id(tensor): tensor for tensor in self._shared.values() if isinstance(tensor, nn.Parameter)}
        zeros = sum(map(count_zeros, [*outside.values(), *self._never_saved]))
        for index in range(len(self)):
            if index not in self._zeros:
                self._zeros[index] = self._count_zeros(index)
        return self._num_parameters, zeros + sum(self._zeros.values())

    def _count_zeros(self, index: int) -> int:
        self.open(index)
        borrowed = map(self.modules[index].get_parameter, self._shared_with[index])
        shared = [*self._shared.values(), *self._never_saved, *borrowed]
        own = [p for p in self.modules[index].parameters() if not any(p is other for other in shared)]
        return sum(map(count_zeros, own))

    @contextmanager
    def whole(self) -> Iterator[None]:
        """While open, the model can be called as a whole; every call reads all blocks from disk."""

        def load(index: int) -> Any:
            return lambda _module, _args: self.open(index) and None

        handles = [module.register_forward_pre_hook(load(index)) for index, module in enumerate(self.modules)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _release(self) -> None:
        """Put the block that is in memory back to the meta device."""
        for module, is_parameter, name, blank in self._blanks:
            (module._parameters if is_parameter else module._buffers)[name] = cast(Any, blank)
        self._blanks, self._current = [], None

    def _place(self, modules: Iterable[tuple[str, nn.Module]], stored: StoredTensors) -> None:
        """Give modules on the meta device their weights, and the buffers that files hold."""
        for path, module in modules:
            for is_parameter, tensors in ((True, module._parameters), (False, module._buffers)):
                for name, blank in list(tensors.items()):
                    if blank is None or not blank.is_meta:
                        continue
                    self._blanks.append((module, is_parameter, name, blank))
                    if id(blank) not in self._placed:
                        self._placed[id(blank)] = self._read(blank, stored, f"{path}.{name}" if path else name)
                    tensors[name] = cast(Any, self._placed[id(blank)])

    def _compute(self) -> None:
        """Compute what no file holds (frequencies of rotary embeddings), as transformers does on loading.

        All at once, because a module may fill the buffers of the modules inside it. It stays in memory.
        """
        made: dict[int, tuple[str, Tensor, Tensor]] = {}
        for path, module in self.model.named_modules():
            for tensors in (module._parameters, module._buffers):
                for name, blank in list(tensors.items()):
                    full = f"{path}.{name}" if path else name
                    if blank is None or not blank.is_meta:
                        continue
                    if name not in module._non_persistent_buffers_set and self._stored.has(full):
                        blank._is_hf_initialized = True
                        continue
                    if id(blank) not in made:
                        empty = torch.empty_like(blank, device=self._device, memory_format=torch.contiguous_format)
                        new = nn.Parameter(empty, blank.requires_grad) if isinstance(blank, nn.Parameter) else empty
                        made[id(blank)] = full, blank, new
                    tensors[name] = cast(Any, made[id(blank)][2])
        computed = [(name, tensor.data) for name, _, tensor in made.values()]
        self._never_saved = [tensor for _, _, tensor in made.values() if isinstance(tensor, nn.Parameter)]
        self._fill(computed, 0)
        first = [buffer.clone() for _, buffer in computed]
        self._fill(computed, 255)
        # What nobody computes is what was there before.
        untouched = [
            name for (name, buffer), other in zip(computed, first, strict=True) if not _same_bytes(buffer, other)
        ]
        if untouched:
            raise ModelError(
                f"buffers must be in the files or computed by the model, got neither for {untouched[0]}.",
                hint="Load the model in memory, and see that it computes them.",
            )

    def _fill(self, buffers: Sequence[tuple[str, Tensor]], byte: int) -> None:
        from transformers import initialization

        for _, buffer in buffers:
            buffer.view(-1).view(torch.uint8).fill_(byte)
        for module in self.model.modules():
            vars(module).pop("_is_hf_initialized", None)
        with torch.no_grad(), torch.random.fork_rng(), initialization.guard_torch_init_functions():
            torch.manual_seed(0)
            self.model.initialize_weights()  # type: ignore[operator]


def _same_bytes(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(-1).view(torch.uint8), other.view(-1).view(torch.uint8))


def _like(blank: Tensor, tensor: Tensor) -> Tensor:
    """The tensor as the parameter or buffer that it takes the place of; transformers will not initialise it again."""
    if isinstance(blank, nn.Parameter):
        tensor = nn.Parameter(tensor, requires_grad=blank.requires_grad)
    tensor._is_hf_initialized = True  # type: ignore[attr-defined]
    return tensor


def _aligned(tensor: Tensor, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Tensor:
    tensor = tensor.to(device=device, dtype=dtype)
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor


def align_weights(model: nn.Module) -> None:
    """Move weights that a file had at odd addresses, so that a model computes the same bits wherever it came from."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = _aligned(tensor.data)

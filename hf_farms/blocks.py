"""Model -> blocks, and the layers in each: the only file that knows architectures.

A layer is a named view on a weight that is read and written as `(out, in)`. A `BlockSource` hands out the blocks of
a model one after another, so that everything which walks a model also works where the model never fits into memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from hf_farms.errors import HfFarmsWarning, ModelError

__all__ = ["Block", "BlockCalls", "BlockMetadata", "BlockSource", "LayerMetadata", "LayerView", "ModelBlockSource"]

# Path of the block list below the base model, and module path -> role inside a block. The dimensions of every family
# with these names are the same: y = x W^T, W (out, in).
GATED_DECODER = {
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.o_proj": "o",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
}
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
LAYOUTS: dict[str, tuple[str, dict[str, str]]] = dict.fromkeys(FAMILIES, ("layers", GATED_DECODER))


@dataclass(frozen=True)
class LayerMetadata:
    """Name (of the module in memory), role and shape `(out, in)` of a layer."""

    name: str
    role: str
    shape: tuple[int, int]


@dataclass(frozen=True)
class BlockMetadata:
    """What is known of a block without loading it."""

    index: int
    name: str
    layers: tuple[LayerMetadata, ...]


@dataclass(frozen=True)
class LayerView:
    """A weight inside a loaded block, seen as `(out, in)`."""

    metadata: LayerMetadata
    module: nn.Linear

    @property
    def name(self) -> str:
        """Name of the module in memory."""
        return self.metadata.name

    @property
    def device(self) -> torch.device:
        """Where the weight lies."""
        return self.module.weight.device

    def read(self) -> Tensor:
        """The weight, `(out, in)`, in its own dtype and on its own device; do not change it in place.

        Raises:
            ModelError: the weight is not loaded, is quantised, or holds NaN or infinity.
        """
        weight = self.module.weight.detach()
        if weight.is_meta:
            raise ModelError(f"weights must be loaded, got a meta tensor in {self.name}.")
        if not weight.is_floating_point() or weight.dtype.itemsize < 2:
            raise ModelError(
                f"weights must be float32, bfloat16 or float16, got {weight.dtype} in {self.name}.",
                hint="Load the model without quantisation.",
            )
        if not torch.isfinite(weight).all():
            raise ModelError(f"weights must be finite, got NaN or infinity in {self.name}.weight.")
        return weight

    def write_(self, weight: Tensor) -> None:
        """Overwrite the weight, `(out, in)`, in place."""
        with torch.no_grad():
            self.module.weight.copy_(weight)

    @contextmanager
    def inputs(self, call: Callable[[Tensor], None]) -> Iterator[None]:
        """While open, `call` receives what the layer is multiplied with, `(..., in)`, each time the block runs."""
        handle = self.module.register_forward_pre_hook(lambda _module, args: call(args[0].detach()))
        try:
            yield
        finally:
            handle.remove()


@dataclass(frozen=True)
class BlockCalls:
    """How the model itself calls its blocks on one batch: the first block's input, and each block's other arguments."""

    hidden: Tensor
    arguments: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...]


@dataclass(frozen=True)
class Block:
    """A loaded block: it can be called, and its layers can be read and written."""

    metadata: BlockMetadata
    module: nn.Module
    layers: tuple[LayerView, ...]

    def __call__(self, hidden: Tensor, arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> Tensor:
        """Hidden states after this block, given those before it and the captured other arguments."""
        args, kwargs = arguments
        out = self.module(hidden, *args, **kwargs)
        return cast(Tensor, out[0] if isinstance(out, tuple) else out)


class BlockSource(Protocol):
    """The blocks of a model, in order of depth; may be walked any number of times."""

    name: str
    model_type: str
    dtype: str
    vocabulary: int | None

    def __len__(self) -> int:
        """How many blocks."""

    def metadata(self, index: int) -> BlockMetadata:
        """Names, roles and shapes, without loading weights."""

    def open(self, index: int) -> Block:
        """The block with its weights."""

    def commit(self, index: int) -> None:
        """The block is finished: write it to where the source keeps its results."""

    def capture(self, batch: Mapping[str, Tensor]) -> BlockCalls:
        """How the model calls its blocks on this batch."""

    def evaluation(self) -> AbstractContextManager[None]:
        """While open, the blocks run as for inference (no dropout)."""

    def count_parameters(self) -> tuple[int, int]:
        """Parameters of the whole model, tied ones once, and how many of them are zero."""


class _AllCaptured(Exception):  # noqa: N818 - a signal that ends the forward pass, not an error
    pass


class ModelBlockSource:
    """The blocks of a model in memory.

    Args:
        model: any model with a list of like blocks that hold `nn.Linear` layers.
        on_commit: receives `(index, name of the block, its state dict)` when a block is finished.

    Raises:
        ModelError: the model has no list of blocks with linear layers.
    """

    def __init__(
        self, model: nn.Module, *, on_commit: Callable[[int, str, dict[str, Tensor]], None] | None = None
    ) -> None:
        config = getattr(model, "config", None)
        self.model = model
        self.model_type: str = getattr(config, "model_type", "") or type(model).__name__
        self.name: str = getattr(config, "_name_or_path", "") or type(model).__name__
        self.dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        self.vocabulary: int | None = getattr(config, "vocab_size", None)
        self.path, self.modules, self.roles = _find_blocks(model, self.model_type)
        self.on_commit = on_commit
        self._returns_tuple: bool | None = None

    def __len__(self) -> int:
        """How many blocks."""
        return len(self.modules)

    def metadata(self, index: int) -> BlockMetadata:
        """Names, roles and shapes of one block."""
        name = f"{self.path}.{index}"
        layers = []
        for path, role in self.roles[index].items():
            module = cast(nn.Linear, self.modules[index].get_submodule(path))
            layers.append(LayerMetadata(f"{name}.{path}", role, (module.out_features, module.in_features)))
        return BlockMetadata(index, name, tuple(layers))

    def open(self, index: int) -> Block:
        """The block itself; nothing is copied."""
        module, metadata = self.modules[index], self.metadata(index)
        views = (
            LayerView(layer, cast(nn.Linear, module.get_submodule(path)))
            for layer, path in zip(metadata.layers, self.roles[index], strict=True)
        )
        return Block(metadata, module, tuple(views))

    def commit(self, index: int) -> None:
        """Hand the finished block to `on_commit`."""
        if self.on_commit is not None:
            self.on_commit(index, f"{self.path}.{index}", self.modules[index].state_dict())

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """While open, the model is in evaluation mode."""
        training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(training)

    def count_parameters(self) -> tuple[int, int]:
        """Parameters of the whole model, tied ones once, and how many of them are zero."""
        parameters = list(self.model.parameters())
        return sum(p.numel() for p in parameters), sum(int((p == 0).sum()) for p in parameters)

    def capture(self, batch: Mapping[str, Tensor]) -> BlockCalls:
        """Run the model with blocks that only write down how they are called.

        Every block's own arguments are taken (masks and position embeddings can differ between blocks), the work of
        the blocks and of the head is skipped.
        """
        calls: list[tuple[Tensor, tuple[Any, ...], dict[str, Any]]] = []

        def recorder(forward: Callable[..., Any]) -> Callable[..., Any]:
            def record(*args: Any, **kwargs: Any) -> Any:
                kwargs = dict(kwargs)
                hidden = args[0] if args else kwargs.pop("hidden_states")
                calls.append((hidden, args[1:], kwargs))
                if self._returns_tuple is None:
                    self._returns_tuple = isinstance(forward(hidden, *args[1:], **kwargs), tuple)
                if len(calls) == len(self):
                    raise _AllCaptured
                return (hidden,) if self._returns_tuple else hidden

            return record

        extra = {"use_cache": False} if hasattr(getattr(self.model, "config", None), "use_cache") else {}
        originals = [module.forward for module in self.modules]
        try:
            for module, forward in zip(self.modules, originals, strict=True):
                module.forward = recorder(forward)
            device = next(self.model.parameters()).device
            with torch.no_grad():
                self.model(**{name: value.to(device) for name, value in batch.items()}, **extra)
        except _AllCaptured:
            pass
        finally:
            for module in self.modules:
                del module.forward  # uncovers the method of the class
        if len(calls) != len(self):
            raise ModelError(f"the model must call each of its {len(self)} blocks once, got {len(calls)} calls.")
        return BlockCalls(calls[0][0], tuple((args, kwargs) for _, args, kwargs in calls))


def _find_blocks(model: nn.Module, model_type: str) -> tuple[str, list[nn.Module], list[dict[str, str]]]:
    """Path of the block list, the blocks, and for each block module path -> role of its layers."""
    if model_type in LAYOUTS:
        below, roles = LAYOUTS[model_type]
        prefix = getattr(model, "base_model_prefix", "")
        for path in (f"{prefix}.{below}", below):
            blocks = _module_list(model, path)
            if blocks and all(_is_linear(block, layer) for block in blocks for layer in roles):
                return path, blocks, [dict(roles)] * len(blocks)
    path, blocks = _largest_module_list(model)
    found = [{name: name for name, m in block.named_modules() if type(m) is nn.Linear} for block in blocks]
    if not any(found):
        raise ModelError(
            f"model must have a list of blocks with linear layers, got {type(model).__name__} ({model_type}) without.",
            hint="Supported by name: " + ", ".join(LAYOUTS) + "; others by their module tree.",
        )
    names = ", ".join(dict.fromkeys(name for block in found for name in block))
    warnings.warn(
        f"No layout is known for {type(model).__name__} ({model_type}); using its module tree: {len(blocks)} blocks at "
        f"{path!r} with the linear layers {names}.",
        HfFarmsWarning,
        stacklevel=4,
    )
    return path, blocks, found


def _module_list(model: nn.Module, path: str) -> list[nn.Module]:
    try:
        return list(cast(nn.ModuleList, model.get_submodule(path)))
    except (AttributeError, TypeError):
        return []


def _is_linear(block: nn.Module, path: str) -> bool:
    try:
        return type(block.get_submodule(path)) is nn.Linear
    except AttributeError:
        return False


def _largest_module_list(model: nn.Module) -> tuple[str, list[nn.Module]]:
    """The module list of like children with the most weights in linear layers."""

    def weight_count(blocks: nn.ModuleList) -> int:
        return sum(m.weight.numel() for m in blocks.modules() if type(m) is nn.Linear)

    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len({type(child) for child in module}) == 1
    ]
    name, module = max(lists, key=lambda item: weight_count(item[1]), default=("", nn.ModuleList()))
    return name, list(module)

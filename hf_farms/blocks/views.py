"""A layer: a named view on a weight, whatever the parameter that holds it looks like.

Shapes: a matrix `(out, in)`, y = x W^T; a convolution `(out, in, *kernel)`; experts `(e, out, in)` or `(e, in, out)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from hf_farms.errors import ModelError

__all__ = ["BlockMetadata", "Kind", "LayerMetadata", "LayerStore", "LayerView", "ModuleStore", "Part"]

# linear: y = x W^T; expert: the same inside a 3-D parameter; conv: real, three or more dimensions; complex: a matrix or
# convolution of complex numbers (Fourier layers).
Kind = Literal["linear", "expert", "conv", "complex"]


@dataclass(frozen=True)
class Part:
    """Which part of a parameter a layer is.

    Attributes:
        expert: index along the first dimension of a 3-D parameter; None for a parameter without experts.
        transposed: the parameter holds `(in, out)`.
        groups: the rows come in so many groups of equal size, and of each group the layer has
        start: the rows from here
        stop: to here (None: all). gpt_neox has a group for every head with the rows of q, k and v in it.
    """

    expert: int | None = None
    transposed: bool = False
    groups: int = 1
    start: int = 0
    stop: int | None = None

    def of(self, parameter: Tensor) -> Tensor:
        """The layer's weight; a view where the rows lie together, else a copy."""
        if self.expert is not None:
            parameter = parameter[self.expert]
        return self.rows_of(parameter)

    def rows_of(self, weight: Tensor) -> Tensor:
        """The same for a weight whose expert is chosen already."""
        weight = weight.mT if self.transposed else weight
        if self.stop is None:
            return weight
        if self.groups == 1:
            return weight[self.start : self.stop]
        rows: Tensor = weight.unflatten(0, (self.groups, -1))[:, self.start : self.stop]
        return rows.flatten(0, 1)

    def into_(self, parameter: Tensor, weight: Tensor) -> None:
        """Write the layer's weight to where it belongs."""
        target = parameter if self.expert is None else parameter[self.expert]
        target = target.mT if self.transposed else target
        if self.stop is None:
            target.copy_(weight)
        else:
            target = target.unflatten(0, (self.groups, -1))[:, self.start : self.stop]
            target.copy_(weight.unflatten(0, (self.groups, -1)))


WHOLE = Part()


@dataclass(frozen=True)
class LayerMetadata:
    """What is known of a layer without loading it.

    Attributes:
        name: of the module in memory; for a part of one with the part's role (`...qkv_proj.q`), for an expert with its
            number (`...experts.3.gate`).
        role: q, k, v, o, gate, up, down, ...; the path inside the block where no standard term is known.
        shape: `(out, in)`, or `(out, in, *kernel)`.
        kind: how it is used.
        parameter: name in memory of the parameter that holds it.
        part: which part of that parameter.
    """

    name: str
    role: str
    shape: tuple[int, ...]
    kind: Kind = "linear"
    parameter: str = ""
    part: Part = field(default=WHOLE, repr=False)


@dataclass(frozen=True)
class BlockMetadata:
    """What is known of a block without loading it."""

    index: int
    name: str
    layers: tuple[LayerMetadata, ...]


class LayerStore(Protocol):
    """Where the weight of a layer lies."""

    def read(self, layer: LayerMetadata) -> Tensor:
        """The weight as it is stored, unchecked."""

    def write(self, layer: LayerMetadata, weight: Tensor) -> None:
        """Overwrite the weight."""


@dataclass(frozen=True)
class LayerView:
    """A weight inside a loaded block, seen as `(out, in)`, or `(out, in, *kernel)` for a convolution."""

    metadata: LayerMetadata
    store: LayerStore
    module: nn.Module | None = None

    @property
    def name(self) -> str:
        """Name of the module in memory."""
        return self.metadata.name

    @property
    def role(self) -> str:
        """Standard term of the layer."""
        return self.metadata.role

    @property
    def device(self) -> torch.device:
        """Where the weight lies."""
        return next(self.module.parameters()).device if self.module is not None else torch.device("cpu")

    def read(self, *, check: bool = True) -> Tensor:
        """The weight in its own dtype and on its own device; do not change it in place.

        Args:
            check: whether to look for NaN and infinity, one pass over the weight.

        Raises:
            ModelError: the weight is not loaded, is quantised, or holds NaN or infinity.
        """
        weight = dequantised(self.store.read(self.metadata).detach(), self.name)
        if weight.is_meta:
            raise ModelError(f"weights must be loaded, got a meta tensor in {self.name}.")
        if tuple(weight.shape) != self.metadata.shape:
            raise ModelError(
                f"weights must have the shape that the config says, {self.metadata.shape}, got {tuple(weight.shape)} "
                f"in {self.name}."
            )
        if check and not _is_finite(weight):
            raise ModelError(f"weights must be finite, got NaN or infinity in {self.name}.weight.")
        return weight

    def write_(self, weight: Tensor) -> None:
        """Overwrite the weight, in place."""
        with torch.no_grad():
            self.store.write(self.metadata, weight)

    @contextmanager
    def inputs(self, call: Callable[[Tensor], None]) -> Iterator[None]:
        """While open, `call` receives what the layer is multiplied with, `(..., in)`, each time the block runs.

        Raises:
            ModelError: the layer is an expert or a convolution, whose inputs module hooks do not see as a matrix.
        """
        if self.module is None or self.metadata.kind != "linear":
            raise ModelError(
                f"inputs can only be measured for linear layers, got a {self.metadata.kind} in {self.name}."
            )
        handle = self.module.register_forward_pre_hook(lambda _module, args: call(args[0].detach()))
        try:
            yield
        finally:
            handle.remove()


@dataclass(frozen=True)
class ModuleStore:
    """The weight of a module in memory; with adapters (LoRA) their sum W + BA, which is computed and not stored."""

    module: nn.Module
    attribute: str

    def read(self, layer: LayerMetadata) -> Tensor:
        """The layer's part of the parameter."""
        base = getattr(self.module, "base_layer", None)
        if base is None:
            return layer.part.of(getattr(self.module, self.attribute).detach())
        weight = dequantised(getattr(base, self.attribute).detach(), layer.name)
        adapter: Any = self.module
        if not adapter.merged and not adapter.disable_adapters:
            for name in adapter.active_adapters:
                if name in getattr(adapter, "lora_variant", {}):
                    raise ModelError(
                        f"adapters must be plain LoRA, got a variant of it (such as DoRA) in {layer.name}.",
                        hint="Merge it first: model.merge_and_unload().",
                    )
                if name in adapter.lora_A:
                    weight = weight + adapter.get_delta_weight(name).to(weight.dtype)
        return layer.part.of(weight.detach())

    def write(self, layer: LayerMetadata, weight: Tensor) -> None:
        """Overwrite the layer's part."""
        if hasattr(self.module, "base_layer"):
            raise ModelError(
                f"weights must be plain to be overwritten, got an adapter in {layer.name}.",
                hint="Merge it first: model.merge_and_unload().",
            )
        layer.part.into_(getattr(self.module, self.attribute), weight)


def dequantised(weight: Tensor, name: str) -> Tensor:
    """The weight in a float dtype, by the means of the library that quantised it.

    Raises:
        ModelError: no library offers that here.
    """
    kind = type(weight).__name__
    if kind in ("Params4bit", "Int8Params"):
        from transformers.integrations.bitsandbytes import dequantize_bnb_weight

        return cast(Tensor, dequantize_bnb_weight(cast(nn.Parameter, weight)))
    if weight.is_quantized or (type(weight) not in (Tensor, nn.Parameter) and hasattr(weight, "dequantize")):
        return weight.dequantize()
    if weight.is_complex() or (weight.is_floating_point() and weight.dtype.itemsize >= 2):
        return weight
    raise ModelError(
        f"weights must be float32, bfloat16 or float16, got {weight.dtype} in {name}.",
        hint="Load the model without quantisation, or with its library's dequantize option.",
    )


def _is_finite(weight: Tensor) -> bool:
    """One pass without a copy: a NaN comes out of min and max, an infinity is one of them."""
    if weight.numel() == 0 or weight.is_meta:
        return True
    if weight.is_complex():
        weight = torch.view_as_real(weight)
    return all(bool(torch.isfinite(bound)) for bound in weight.aminmax())

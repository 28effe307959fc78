"""A layer: a named view on a weight, whatever the parameter that holds it looks like.

Shapes: a matrix `(out, in)`, y = x W^T; a convolution `(out, in, *kernel)`; experts `(e, out, in)` or `(e, in, out)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from hf_farms.blocks.inputs import TokenMask, expert_inputs, linear_inputs
from hf_farms.errors import ModelError

__all__ = ["BlockMetadata", "Kind", "LayerMetadata", "LayerStore", "LayerView", "Part"]

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
    """What is known of a block without loading it.

    Attributes:
        index: in order of depth.
        name: in memory.
        layers: that are its own.
        shared: names of layers whose weight an earlier block has too, and their names there; they count there.
    """

    index: int
    name: str
    layers: tuple[LayerMetadata, ...]
    shared: tuple[tuple[str, str], ...] = ()


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

    @property
    def left_out(self) -> list[str]:
        """Adapters that are not in the weight that was read last, each with the reason."""
        return getattr(self.store, "left_out", [])

    def read(self, *, check: bool = True) -> Tensor:
        """The weight in its own dtype and on its own device; do not change it in place.

        Args:
            check: whether to look for NaN and infinity, one pass over the weight.

        Raises:
            ModelError: the weight is not loaded, is quantised, or holds NaN or infinity.
        """
        weight = self.store.read(self.metadata).detach()
        if weight.is_meta:
            raise ModelError(f"weights must be loaded, got a meta tensor in {self.name}.")
        if not weight.is_complex() and (not weight.is_floating_point() or weight.dtype.itemsize < 2):
            raise ModelError(
                f"weights must be float32, bfloat16 or float16, got {weight.dtype} in {self.name}.",
                hint="Load the model without quantisation, or with its library's dequantize option.",
            )
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
    def inputs(self, call: Callable[[Tensor], None], *, token_mask: TokenMask | None = None) -> Iterator[None]:
        """While open, `call` receives what the layer is multiplied with, each time the block runs.

        Args:
            call: gets `(..., in)`, for an expert the rows of the tokens that it got; the very tensor of the product, so
                that layers with the same input can be told.
            token_mask: leaves out tokens.

        Raises:
            ModelError: the layer is a convolution or complex, or its weights are not in a module.
        """
        layer = self.metadata
        if self.module is None or layer.kind not in ("linear", "expert"):
            raise ModelError(f"inputs can only be measured for matrices in memory, got a {layer.kind} in {self.name}.")
        if layer.kind == "linear":
            listening = linear_inputs(self.module, call, token_mask)
        else:
            assert layer.part.expert is not None
            attribute = layer.parameter.rpartition(".")[2]
            listening = expert_inputs(self.module, attribute, layer.part.expert, call, token_mask)
        with listening:
            yield


def _is_finite(weight: Tensor) -> bool:
    """One pass without a copy: a NaN comes out of min and max, an infinity is one of them."""
    if weight.numel() == 0 or weight.is_meta:
        return True
    if weight.is_complex():
        weight = torch.view_as_real(weight)
    return all(bool(torch.isfinite(bound)) for bound in weight.aminmax())

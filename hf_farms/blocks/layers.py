"""LayerView: a named view on one weight matrix, independent of the parameter that holds it.

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
from hf_farms.config.roles import counts
from hf_farms.errors import ModelError

__all__ = ["BlockMetadata", "Kind", "LayerMetadata", "LayerStore", "LayerView", "Part", "check_finite"]

# linear: y = x W^T; expert: the same inside a 3-D parameter; conv: real, three or more dimensions; complex: complex
# matrix or convolution (Fourier layers).
Kind = Literal["linear", "expert", "conv", "complex"]


@dataclass(frozen=True)
class Part:
    """Part of a parameter that forms a layer.

    Attributes:
        expert: index along the first dimension of a 3-D parameter; None for a parameter without experts.
        transposed: the parameter is stored as `(in, out)`.
        groups: number of equal groups of rows. gpt_neox has one group per head, with the rows of q, k and v in it.
        start: first row of the layer within each group.
        stop: end of its rows within each group; None for all rows.
    """

    expert: int | None = None
    transposed: bool = False
    groups: int = 1
    start: int = 0
    stop: int | None = None

    def of(self, parameter: Tensor) -> Tensor:
        """Return the layer's weight: a view where its rows are contiguous, else a copy."""
        if self.expert is not None:
            parameter = parameter[self.expert]
        return self.rows_of(parameter)

    def rows_of(self, weight: Tensor) -> Tensor:
        """Return the layer's weight, given the weight of its expert."""
        weight = weight.mT if self.transposed else weight
        if self.stop is None:
            return weight
        if self.groups == 1:
            return weight[self.start : self.stop]
        rows: Tensor = weight.unflatten(0, (self.groups, -1))[:, self.start : self.stop]
        return rows.flatten(0, 1)

    def into_(self, parameter: Tensor, weight: Tensor) -> None:
        """Write the layer's weight into the parameter, in place."""
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
    """Description of a layer, available without loading its weight.

    Attributes:
        name: module name in memory; a part of a fused weight has its role appended (`...qkv_proj.q`), an expert its
            index and role (`...experts.3.gate`).
        role: q, k, v, o, gate, up, down, ...; the path inside the block if no standard role is known.
        shape: `(out, in)`, or `(out, in, *kernel)`.
        kind: linear, expert, conv or complex.
        parameter: name in memory of the parameter that holds the weight.
        part: part of that parameter.
    """

    name: str
    role: str
    shape: tuple[int, ...]
    kind: Kind = "linear"
    parameter: str = ""
    part: Part = field(default=WHOLE, repr=False)

    @property
    def counts(self) -> bool:
        """Whether it is pruned and counts in its block; routers do not."""
        return counts(self.role)


@dataclass(frozen=True)
class BlockMetadata:
    """Description of a block, available without loading its weights.

    Attributes:
        index: position in order of depth.
        name: module name in memory.
        layers: layers of the block, without those shared with an earlier block.
        shared: pairs of names of layers that an earlier block owns: here, and there.
    """

    index: int
    name: str
    layers: tuple[LayerMetadata, ...]
    shared: tuple[tuple[str, str], ...] = ()


class LayerStore(Protocol):
    """Storage of layer weights."""

    def read(self, layer: LayerMetadata) -> Tensor:
        """Read the weight as it is stored, unchecked."""

    def write(self, layer: LayerMetadata, weight: Tensor) -> None:
        """Overwrite the weight."""


@dataclass(frozen=True)
class LayerView:
    """Readable and writable view on one weight of a block: `(out, in)`, or `(out, in, *kernel)` for a convolution.

    Attributes:
        metadata: name, role and shape.
        store: storage of the weight.
        module: module that uses the weight; None if it is not in memory.
    """

    metadata: LayerMetadata
    store: LayerStore
    module: nn.Module | None = None

    @property
    def name(self) -> str:
        """Module name in memory."""
        return self.metadata.name

    @property
    def role(self) -> str:
        """Role of the layer: q, k, v, o, gate, up, down, ..."""
        return self.metadata.role

    @property
    def counts(self) -> bool:
        """Whether it is pruned and counts in its block; routers do not."""
        return self.metadata.counts

    @property
    def device(self) -> torch.device:
        """Device of the weight."""
        return next(self.module.parameters()).device if self.module is not None else torch.device("cpu")

    @property
    def left_out(self) -> list[str]:
        """Adapters that were not applied to the weight in the last `read`, each with the reason."""
        return getattr(self.store, "left_out", [])

    def read(self, *, check: bool = True) -> Tensor:
        """Read the weight in its own dtype, on its own device. Do not modify it in place.

        Args:
            check: whether to check for NaN and infinity; costs one pass over the weight.

        Returns:
            `metadata.shape`, detached.

        Raises:
            ModelError: the weight is not loaded, is quantized, or contains NaN or infinity.
        """
        weight = self.store.read(self.metadata).detach()
        if weight.is_meta:
            raise ModelError(f"weights must be loaded, got a meta tensor in {self.name}.")
        if not weight.is_complex() and (not weight.is_floating_point() or weight.dtype.itemsize < 2):
            raise ModelError(
                f"weights must be float32, bfloat16 or float16, got {weight.dtype} in {self.name}.",
                hint="Load the model without quantization, or with its library's dequantize option.",
            )
        if tuple(weight.shape) != self.metadata.shape:
            raise ModelError(
                f"weights must have the shape that follows from the config, {self.metadata.shape}, got "
                f"{tuple(weight.shape)} in {self.name}."
            )
        if check:
            check_finite(self.name, weight)
        return weight

    def write_(self, weight: Tensor) -> None:
        """Overwrite the weight, in place."""
        with torch.no_grad():
            self.store.write(self.metadata, weight)

    @contextmanager
    def inputs(self, call: Callable[[Tensor], None], *, token_mask: TokenMask | None = None) -> Iterator[None]:
        """Call `call` with the input of the layer each time the block runs, within the context.

        Args:
            call: receives `(..., in)`; for an expert the rows of the tokens routed to it. Layers with a common input
                receive the same tensor object, so that this can be detected.
            token_mask: selects the rows of unmasked tokens.

        Raises:
            ModelError: the layer is a convolution or complex, or its weights are not in a module.
        """
        layer = self.metadata
        if self.module is None or layer.kind not in ("linear", "expert"):
            raise ModelError(f"inputs can only be measured for matrices in memory, got a {layer.kind} in {self.name}.")
        if layer.kind == "linear":
            recording = linear_inputs(self.module, call, token_mask)
        else:
            assert layer.part.expert is not None
            attribute = layer.parameter.rpartition(".")[2]
            recording = expert_inputs(self.module, attribute, layer.part.expert, call, token_mask)
        with recording:
            yield


def check_finite(name: str, weight: Tensor) -> None:
    """Reject the weight of a layer that has NaN or infinity in it.

    Raises:
        ModelError: the message names the layer.
    """
    if not _is_finite(weight):
        raise ModelError(f"weights must be finite, got NaN or infinity in {name}.weight.")


def _is_finite(weight: Tensor) -> bool:
    """Return whether all entries are finite: min and max propagate NaN, so one pass without a copy is enough."""
    if weight.numel() == 0 or weight.is_meta:
        return True
    if weight.is_complex():
        weight = torch.view_as_real(weight)
    return all(bool(torch.isfinite(bound)) for bound in weight.aminmax())

"""Linear layers of which a few channels are trained, in place.

The trained slice is a separate Parameter, in float32 if the weight is in half precision. It is written into the weight
after every step of its optimizer. State dicts and `release` use the slice, not the weight, which may be out of date if
other code has changed the slice. Where an engine shards weights and slices, it reads and writes them (`engines/`).

Symbols: t tokens, m outputs, n inputs, s selected channels; weight (m, n), Conv1D of transformers (n, m).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers.pytorch_utils import Conv1D

from hf_farms.blocks.coupling import Orders, undo_orders
from hf_farms.blocks.partitioned import is_partitioned
from hf_farms.s2ft.engines import Engine, engine_of
from hf_farms.s2ft.products import TrainedInputs, TrainedOutputs, picked

__all__ = [
    "SLICE",
    "InOriginalOrder",
    "SelectiveConv1D",
    "SelectiveLayer",
    "SelectiveLinear",
    "ordered_class",
    "selective_class",
]

# The name must not contain "bias" or "norm": such parameters usually get no weight decay.
SLICE = "selected"


class InOriginalOrder(nn.Module):
    """Mixin for modules with permuted parameters, whose state dicts have the original order."""

    s2ft_orders: Orders
    s2ft_plain_class: type[nn.Module]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, by_dim in self.s2ft_orders.items():
            destination[prefix + name] = undo_orders(destination[prefix + name], by_dim)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        original = {}
        for name, by_dim in self.s2ft_orders.items():
            key = prefix + name
            # The plain layer rejects another shape.
            if key in state_dict and state_dict[key].shape == getattr(self, name).shape:
                original[key] = state_dict[key]
                for dim, order in by_dim.items():
                    state_dict[key] = state_dict[key].index_select(dim, order.to(state_dict[key].device))
        super()._load_from_state_dict(state_dict, prefix, *args)
        state_dict.update(original)


class SelectiveLayer(InOriginalOrder):
    """Mixin for a linear layer that trains some of its channels; its state dict is that of the plain layer.

    `select` initializes it after the class of a plain layer has been changed, `release` ends it; the module stays the
    same object.
    """

    weight: Any
    bias: Any
    selected: nn.Parameter
    s2ft_channels: Tensor
    s2ft_index: Tensor
    s2ft_start: int | None
    s2ft_inputs: bool
    s2ft_write_back: bool

    def select(self, index: Tensor, *, inputs: bool, write_back: bool) -> None:
        """Start training these channels.

        Args:
            index: `(s,)` int64, channels of the inputs or outputs.
            inputs: whether they are inputs.
            write_back: whether each step writes the slice into the weight; else the forward pass adds a second product.
        """
        start = int(index[0])
        contiguous = bool((index == torch.arange(start, start + len(index))).all())
        self.s2ft_inputs, self.s2ft_start = inputs, start if contiguous else None
        self.s2ft_write_back = write_back
        # Not buffers: DDP broadcasts those in every forward pass, casts and `to_empty` change them. The copy on the CPU
        # survives a move to the meta device.
        self.s2ft_channels = index.cpu()
        self.s2ft_index = index.to(self.weight.device)
        dtype = torch.float32 if self.weight.dtype in (torch.bfloat16, torch.float16) else self.weight.dtype
        self.selected = nn.Parameter(self.slice_of_weight().to(dtype))
        self.engine.adopt(self)
        _LAYERS[self] = None

    @property
    def s2ft_transposed(self) -> bool:
        """Whether the weight is stored as `(n, m)`."""
        return isinstance(self, Conv1D)

    @property
    def engine(self) -> Engine:
        """The engine that stores the weight now."""
        return engine_of(self.weight)

    def release(self) -> None:
        """Write the slice into the weight and stop training channels."""
        self.write_into(self.weight)
        _LAYERS.pop(self, None)
        for name in (SLICE, "s2ft_channels", "s2ft_index", "s2ft_start", "s2ft_inputs", "s2ft_write_back"):
            delattr(self, name)

    @property
    def matrix(self) -> Tensor:
        """The weight as `(m, n)`."""
        weight: Tensor = self.weight.detach()
        return weight.mT if self.s2ft_transposed else weight

    def slice_of_weight(self) -> Tensor:
        """Return a copy of the selected part of the weight, `(m, s)` or `(s, n)`, stored like the slice."""
        return self.engine.slice_of_weight(self)

    @torch.no_grad()
    def write_into(self, weight: Tensor) -> None:
        """Write the trained slice into a tensor that is stored like the weight."""
        self.engine.write(self, self.selected, weight)

    def after_step(self) -> None:
        """Write a changed slice into the weight, unless the forward pass uses a second product."""
        if self.s2ft_write_back:
            self.write_into(self.weight)

    @torch.no_grad()
    def resume(self, selected: Tensor, base: Tensor | None) -> None:
        """Restore a slice, `(m, s)` or `(s, n)`, and without write-back the part of the weight that it started from."""
        engine = self.engine
        engine.fill(self, selected)
        if not self.s2ft_write_back and base is not None:
            engine.write(self, base, self.weight)
        self.after_step()

    def forward(self, x: Tensor) -> Tensor:
        """`(..., n)` -> `(..., m)`."""
        if not self.s2ft_write_back:
            return self._two_products(x, self.slice_of_weight())
        if not torch.is_grad_enabled():
            return cast(Tensor, super().forward(x))
        if not self.engine.keeps_weights:
            # The second product is zero; its gradient is that of the slice.
            return self._two_products(x, self.selected.detach())
        function: Any = TrainedInputs if self.s2ft_inputs else TrainedOutputs
        index = self.s2ft_index_on(x.device)
        return cast(Tensor, function.apply(x, self.selected, self.matrix, self.bias, index, self.s2ft_start))

    def _two_products(self, x: Tensor, base: Tensor) -> Tensor:
        y = super().forward(x)
        change = (self.selected - base).to(self.weight.dtype)
        index = self.s2ft_index_on(x.device)
        if self.s2ft_inputs:
            return cast(Tensor, y + linear(picked(x, index, self.s2ft_start), change))
        return cast(Tensor, y.index_add(-1, index, linear(x, change).to(y.dtype)))

    def s2ft_index_on(self, device: torch.device) -> Tensor:
        """Return the channels on a device: engines move parameters by themselves, DataParallel makes replicas."""
        if device.type == "cpu":
            return self.s2ft_channels
        if self.s2ft_index.device != device:
            self.s2ft_index = self.s2ft_channels.to(device)
        return self.s2ft_index

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SelectiveLayer:
        """Move and cast like any layer, but keep the slice and its gradient in at least float32."""
        wide, dtype = (self.selected, self.selected.grad), self.weight.dtype

        def apply(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            narrow = moved.is_floating_point() and moved.dtype.itemsize < torch.float32.itemsize
            return tensor.to(moved.device) if narrow and any(tensor is own for own in wide) else moved

        cast(Any, super())._apply(apply, recurse)
        self.s2ft_index = self.s2ft_channels.to(self.weight.device)
        if self.weight.dtype != dtype:
            # Cast back from half precision, for instance: the slice still has the exact values.
            self.after_step()
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        del destination[prefix + SLICE]
        if not self._is_written():
            copied = self.weight.detach().clone()
            self.write_into(copied)
            destination[prefix + "weight"] = undo_orders(copied, self.s2ft_orders.get("weight", {}))

    def _is_written(self) -> bool:
        """Return whether the weight contains the slice; assume so for sharded weights and those without data.

        Processes could find different answers for sharded weights, and only some of them would take part in writing.
        """
        if not self.s2ft_write_back or self.weight.is_meta or self.engine.is_collective:
            return self.s2ft_write_back
        return torch.equal(self.slice_of_weight(), self.selected.detach().to(self.weight))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        weight, selected = (state_dict.get(prefix + name) for name in ("weight", SLICE))
        # torch.distributed.checkpoint adds the model's own parameters to a full state dict that lacks them, and may
        # have loaded into them before this.
        has_slice = selected is not None and selected is not self.selected
        is_own = selected is self.selected and weight is self.weight and not self.engine.is_collective
        super()._load_from_state_dict(state_dict, prefix, *args)
        _, _, missing, *_ = args
        if prefix + SLICE in missing:
            missing.remove(prefix + SLICE)
        if has_slice:
            # For instance from `dict(model.named_parameters())`: the slice is more exact than the weight.
            self.after_step()
        elif weight is not None and not is_own and not (self.weight.is_meta or is_partitioned(self.weight)):
            self._follow_weight()

    @torch.no_grad()
    def _follow_weight(self) -> None:
        """Take the slice from a weight that has been loaded, also if the model was on the meta device before."""
        values = self.slice_of_weight()
        if self.selected.is_meta:
            self.s2ft_index = self.s2ft_channels.to(self.weight.device)
            self.selected = nn.Parameter(values.to(self.selected.dtype), self.selected.requires_grad)
        else:
            self.selected.copy_(values)

    def __setstate__(self, state: dict[str, Any]) -> None:
        cast(Any, super()).__setstate__(state)
        _LAYERS[self] = None


class SelectiveLinear(SelectiveLayer, nn.Linear):
    """`nn.Linear` with trained channels."""


class SelectiveConv1D(SelectiveLayer, Conv1D):
    """`Conv1D` of transformers (GPT-2) with trained channels."""


# Exact types: subclasses, such as quantized layers, have other computations.
SELECTIVE: dict[type[nn.Module], type[SelectiveLayer]] = {nn.Linear: SelectiveLinear, Conv1D: SelectiveConv1D}
ORDERED: dict[type[nn.Module], type[InOriginalOrder]] = {}


def selective_class(plain: type[nn.Module]) -> type[SelectiveLayer] | None:
    """Return the selective class for a class of plain layers, or None if its channels cannot be trained."""
    return SELECTIVE.get(plain)


def ordered_class(plain: type[nn.Module]) -> type[InOriginalOrder]:
    """Return the class for modules with permuted parameters and no trained channels; one for each plain class."""
    if plain not in ORDERED:
        own = {"__doc__": plain.__doc__, "__reduce__": _reduce}
        ORDERED[plain] = type(plain.__name__, (InOriginalOrder, plain), own)
    return ORDERED[plain]


def _reduce(module: InOriginalOrder) -> tuple[Any, ...]:
    """Pickle a module of a generated class, which pickle cannot find by name."""
    return _empty, (module.s2ft_plain_class,), dict(vars(module))


def _empty(plain: type[nn.Module]) -> nn.Module:
    kind = ordered_class(plain)
    return kind.__new__(kind)


# All selective layers: the hook below updates their weights after the step of any optimizer, in any loop and wrapper.
# The forward pass could not detect a change, because fused optimizers do not increase a parameter's version. The order
# is that of `select`, the same in every process (a WeakSet is ordered by addresses).
_LAYERS: weakref.WeakKeyDictionary[SelectiveLayer, None] = weakref.WeakKeyDictionary()


def _after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for layer in list(_LAYERS):
        if id(layer.__dict__["_parameters"].get(SLICE)) in held:
            layer.after_step()


register_optimizer_step_post_hook(_after_step)

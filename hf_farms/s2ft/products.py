"""The product of an input with a weight, differentiable with respect to a slice of the weight.

The backward pass saves only the tensors that the trained channels need. A layer that trains inputs (o, down) saves a
copy of the selected inputs, `x[:, selected]` instead of `x`; one that trains outputs (q, k, v, up, gate) saves `x`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

__all__ = ["TrainedInputs", "TrainedOutputs", "picked"]


class TrainedInputs(torch.autograd.Function):
    """y = x W^T + b with trained W[:, selected]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, selected: Tensor, matrix: Tensor, bias: Tensor | None, index: Tensor, start: int | None
    ) -> Tensor:
        """Multiply `(..., n)` to `(..., m)` with the matrix `(m, n)`, which contains the slice already."""
        y = linear(x, matrix, bias)
        # Under autocast the product is in half precision, and so is its backward pass.
        ctx.save_for_backward(picked(x, index, start).to(y.dtype), matrix)
        ctx.dtypes = x.dtype, selected.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the input and the slice."""
        (grad_y,) = gradients
        chosen, matrix = ctx.saved_tensors
        by_input, by_slice = ctx.dtypes
        grad_x = (grad_y @ matrix.to(grad_y.dtype)).to(by_input) if ctx.needs_input_grad[0] else None
        grad_selected = _rows(grad_y).mT @ _rows(chosen)
        return grad_x, grad_selected.to(by_slice), None, None, None, None


class TrainedOutputs(torch.autograd.Function):
    """y = x W^T + b with trained W[selected]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, selected: Tensor, matrix: Tensor, bias: Tensor | None, index: Tensor, start: int | None
    ) -> Tensor:
        """Multiply `(..., n)` to `(..., m)` with the matrix `(m, n)`, which contains the slice already."""
        y = linear(x, matrix, bias)
        ctx.save_for_backward(x, matrix, index)
        ctx.start, ctx.by_slice = start, selected.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the input and the slice."""
        (grad_y,) = gradients
        x, matrix, index = ctx.saved_tensors
        grad_x = (grad_y @ matrix.to(grad_y.dtype)).to(x.dtype) if ctx.needs_input_grad[0] else None
        grad_selected = _rows(picked(grad_y, index, ctx.start)).mT @ _rows(x.to(grad_y.dtype))
        return grad_x, grad_selected.to(ctx.by_slice), None, None, None, None


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def picked(x: Tensor, index: Tensor, start: int | None) -> Tensor:
    """Return a copy of the selected entries of the last dimension, which does not keep `x` in memory."""
    if start is None:
        return x.index_select(-1, index)
    part = x.narrow(-1, start, len(index))
    return part.clone(memory_format=torch.contiguous_format) if len(index) < x.shape[-1] else part

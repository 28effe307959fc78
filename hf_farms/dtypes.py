"""Dtypes that a model can be computed in; others are for storage alone."""

from __future__ import annotations

from typing import Any

import torch

from hf_farms.errors import ModelError

__all__ = ["parse_dtype", "require_computing"]

# What torch can multiply matrices in on every device.
COMPUTING = ("float32", "bfloat16", "float16", "float64")


def parse_dtype(name: str) -> Any:
    """The dtype of this name; "auto" as it is.

    Raises:
        ValueError: no float dtype, or one for storage alone, such as float8_e4m3fn.
    """
    if name == "auto":
        return name
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or str(dtype).removeprefix("torch.") not in COMPUTING:
        raise ValueError(f"dtype must be auto, float32, bfloat16 or float16, got {name!r}.")
    return dtype


def require_computing(model: torch.nn.Module, name: str) -> None:
    """Refuse weights in a dtype that is for storage alone.

    Args:
        model: as loaded with its own dtype, not quantised.
        name: of the model.

    Raises:
        ModelError: such as float8_e4m3fn.
    """
    for key, parameter in model.named_parameters():
        dtype = str(parameter.dtype).removeprefix("torch.")
        if parameter.is_floating_point() and dtype not in COMPUTING:
            raise ModelError(
                f"weights must have a dtype that can be computed with, got {dtype} in {key} of {name!r}.",
                hint="Load them as another: --dtype bfloat16.",
            )

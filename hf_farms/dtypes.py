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


def require_computing(stored: Any, name: str) -> None:
    """Refuse weights that would be loaded in a dtype that is for storage alone.

    Args:
        stored: the checkpoint's own dtype.
        name: of the model.

    Raises:
        ModelError: such as float8_e4m3fn.
    """
    found = str(stored).removeprefix("torch.")
    if found not in COMPUTING:
        raise ModelError(
            f"weights must have a dtype that can be computed with, got {found} in {name!r}.",
            hint="Load them as another: --dtype bfloat16.",
        )

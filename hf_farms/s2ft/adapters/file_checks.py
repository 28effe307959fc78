"""Check the contents of the file of an adapter, and make the adapter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hf_farms.config import S2FTConfig
from hf_farms.files.dataclass_parsing import parse_dataclass
from hf_farms.files.documents import Document, short_repr
from hf_farms.s2ft.adapters.files import (
    BASE,
    BASE_MODEL,
    BASE_REVISION,
    CHANNELS,
    INDEX,
    VALUES,
    is_printed,
)
from hf_farms.s2ft.adapters.patches import S2FTAdapter, WeightPatch, fingerprint

__all__ = ["checked_adapter"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
# Parts of a parameter's name: never a path.
NAME = re.compile(r"[\w-]+(\.[\w-]+)*")
SHA256 = re.compile(r"[0-9a-f]{64}")


def checked_adapter(description: Mapping[str, Any], file: Any) -> S2FTAdapter:
    """Make an adapter of its description and its tensors, after checks of every name, shape, index, dtype and hash.

    Args:
        description: of the safetensors file.
        file: the open safetensors file.

    Raises:
        ValueError: with the content that is not that of an adapter.
    """
    dtype = DTYPES.get(str(description.get("dtype")))
    if dtype is None:
        raise ValueError(f"dtype {short_repr(description.get('dtype'))}, not one of {', '.join(DTYPES)}")
    weights, layers = description.get("weights"), description.get("layers")
    if not isinstance(weights, dict) or not weights or not isinstance(layers, dict):
        raise ValueError("a description without weights")
    for name in (*weights, *layers):
        if not NAME.fullmatch(name):
            raise ValueError(f"the name {short_repr(name)}, which is not that of a weight")
    entries = {name: _checked_entry(name, entry) for name, entry in weights.items()}
    expected = {f"{name}{end}" for name in weights for end in (INDEX, VALUES)} | {
        f"{name}{CHANNELS}" for name in layers
    }
    expected |= {f"{name}{BASE}" for name, entry in entries.items() if entry["includes_base"]}
    if different := sorted(expected ^ set(file.keys())):
        raise ValueError(f"tensors that do not fit the description, such as {short_repr(different[0])}")
    selection = description.get("selection")
    return S2FTAdapter(
        patches={name: _patch(name, entry, dtype, file) for name, entry in entries.items()},
        base_model=_text(description, "base_model", BASE_MODEL, "a Hub id or a path"),
        base_revision=_text(description, "base_revision", BASE_REVISION, "a revision"),
        selection=None if selection is None else parse_dataclass(Document(selection), S2FTConfig),
        channels={name: _channels(name, sha256, file) for name, sha256 in layers.items()},
        dtype=dtype,
    )


def _checked_entry(name: str, entry: Any) -> dict[str, Any]:
    """Return the description of a weight if each of its fields is valid."""
    if not isinstance(entry, dict):
        raise ValueError(f"a description of {name} that is not an object")
    shape, sha256, number = entry.get("shape"), entry.get("sha256"), entry.get("channels")
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(size) is int and size > 0 for size in shape)):
        raise ValueError(f"shape {short_repr(shape)} of {name}")
    if (
        entry.get("side") not in ("inputs", "outputs")
        or type(entry.get("dim")) is not int
        or entry["dim"] not in (0, 1)
    ):
        raise ValueError(f"side {short_repr(entry.get('side'))} and dim {short_repr(entry.get('dim'))} of {name}")
    if type(number) is not int or not 0 < number <= shape[entry["dim"]]:
        raise ValueError(f"{short_repr(number)} channels of {name}")
    if not isinstance(sha256, dict) or not all(
        isinstance(sha256.get(key), str) and SHA256.fullmatch(sha256[key]) for key in ("index", "values", "base")
    ):
        raise ValueError(f"no SHA-256 of the tensors of {name}")
    if not isinstance(entry.get("includes_base"), bool):
        raise ValueError(f"includes_base {short_repr(entry.get('includes_base'))} of {name}")
    return entry


def _patch(name: str, entry: Mapping[str, Any], dtype: torch.dtype, file: Any) -> WeightPatch:
    shape, dim, number, sha256 = entry["shape"], entry["dim"], entry["channels"], entry["sha256"]
    part = [number if axis == dim else size for axis, size in enumerate(shape)]
    indices = _tensor(file, f"{name}{INDEX}", torch.int64, [number], sha256["index"])
    if bool((indices.diff() <= 0).any()) or int(indices[0]) < 0 or int(indices[-1]) >= shape[dim]:
        raise ValueError(f"channels of {name} that are not ascending numbers from 0 to {shape[dim] - 1}")
    base = _tensor(file, f"{name}{BASE}", dtype, part, sha256["base"]) if entry["includes_base"] else None
    return WeightPatch(
        name=name,
        shape=(shape[0], shape[1]),
        side=entry["side"],
        dim=dim,
        indices=indices,
        values=_tensor(file, f"{name}{VALUES}", dtype, part, sha256["values"]),
        base=base,
        base_fingerprint=sha256["base"],
    )


def _tensor(file: Any, name: str, dtype: torch.dtype, shape: list[int], sha256: str) -> Tensor:
    """Read one tensor if it has this shape, dtype and hash; the shape is checked first, without reading it."""
    stored = list(file.get_slice(name).get_shape())
    if stored != shape:
        raise ValueError(f"shape {stored} instead of {shape} of {name}")
    tensor: Tensor = file.get_tensor(name)
    if tensor.dtype != dtype:
        raise ValueError(f"{str(tensor.dtype).removeprefix('torch.')} instead of {_short(dtype)} in {name}")
    if fingerprint(tensor) != sha256:
        raise ValueError(f"values of {name} that were changed: their SHA-256 is another one")
    return tensor


def _channels(name: str, sha256: object, file: Any) -> tuple[int, ...]:
    key = f"{name}{CHANNELS}"
    tensor = file.get_tensor(key)
    if tensor.dtype != torch.int64 or tensor.ndim != 1 or len(tensor) == 0 or bool((tensor.diff() <= 0).any()):
        raise ValueError(f"channels of {name} that are not ascending")
    if fingerprint(tensor) != sha256 or int(tensor[0]) < 0:
        raise ValueError(f"channels of {name} that were changed: their SHA-256 is another one")
    return tuple(tensor.tolist())


def _text(description: Mapping[str, Any], key: str, pattern: re.Pattern[str], kind: str) -> str | None:
    """Return a text of the description if it can be printed as it is: no escape sequence of a terminal, one line."""
    value = description.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"{key} {short_repr(value)}, which is not a text")
    if not is_printed(value, pattern):
        raise ValueError(f"{key} {short_repr(value)}, which is not {kind}")
    return value


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

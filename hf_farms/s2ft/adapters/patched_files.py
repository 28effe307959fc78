"""Copies of safetensors files in which channels of some tensors have new values; every other byte stays the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from hf_farms.errors import ModelError
from hf_farms.s2ft.adapters.patches import S2FTAdapter

__all__ = ["Change", "changes_of", "write_patched"]

CHUNK = 2**24


@dataclass(frozen=True)
class Change:
    """New values of channels of a tensor on disk: `tensor.index_copy_(dim, indices, values)`."""

    dim: int
    indices: Tensor
    values: Tensor


def changes_of(adapter: S2FTAdapter, stored: Mapping[str, str], *, undo: bool = False) -> dict[str, Change]:
    """Return what a merge, or the undoing of one, changes on disk.

    Args:
        adapter: with the slices of the base if it is undone.
        stored: name on disk by name of the patch.
        undo: put the slices of the base back.
    """
    changes = {}
    for name, patch in adapter.patches.items():
        values = patch.base if undo else patch.values
        assert values is not None
        changes[stored[name]] = Change(patch.dim, patch.indices, values)
    return changes


def write_patched(source: Path, target: Path, changes: Mapping[str, Change]) -> None:
    """Copy a safetensors file with changed channels: a length, a header in JSON with places, and the tensors."""
    with source.open("rb") as reader, target.open("xb") as writer:
        length = reader.read(8)
        header = reader.read(int.from_bytes(length, "little"))
        writer.write(length + header)
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
            begin, end = entry["data_offsets"]
            if name not in changes:
                _copy_bytes(reader, writer, end - begin)
                continue
            content, change = bytearray(reader.read(end - begin)), changes[name]
            tensor = torch.frombuffer(content, dtype=change.values.dtype).view(entry["shape"])
            tensor.index_copy_(change.dim, change.indices, change.values)
            writer.write(content)


def _copy_bytes(reader: BinaryIO, writer: BinaryIO, count: int) -> None:
    while count:
        chunk = reader.read(min(count, CHUNK))
        if not chunk:
            raise ModelError(
                "weight files must not change while they are read, got one that was truncated.",
                hint="Put the file back, and run the same command again.",
            )
        writer.write(chunk)
        count -= len(chunk)

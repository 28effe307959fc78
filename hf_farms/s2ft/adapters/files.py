"""Write an adapter to a folder as a pair of files that a killed process cannot tear apart.

`s2ft_adapter.safetensors` has `{weight}.index`, `{weight}.values` and, unless left out, `{weight}.base`; for an adapter
with a selection also `{layer}.channels`. Its metadata holds the description, with the SHA-256 of every tensor: the file
is complete without the other one and replaced as a whole. `s2ft_config.json` is a copy of the description, written
after it. Between the two, it is that of another adapter, which its digest tells.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from hf_farms.config.checks import check
from hf_farms.files import names
from hf_farms.files.atomic_writes import replacing, write_text, writing
from hf_farms.files.path_checks import check_within
from hf_farms.reports import SCHEMA_VERSION, json_converter, versions
from hf_farms.s2ft.adapters.patches import S2FTAdapter, WeightPatch, fingerprint

__all__ = [
    "BASE",
    "BASE_MODEL",
    "BASE_REVISION",
    "CHANNELS",
    "INDEX",
    "KEY",
    "VALUES",
    "digest_of",
    "is_printed",
    "save_adapter",
    "write_description",
]

# Entry of the metadata of the safetensors file.
KEY = "s2ft"
INDEX, VALUES, BASE, CHANNELS = ".index", ".values", ".base", ".channels"

# Name and revision of a base model, without the characters that end a text in code or start markup: a card has both.
BASE_MODEL, BASE_REVISION = re.compile(r"[^\"`<>|\\]{1,4096}"), re.compile(r"[\w.+@/-]{1,255}")


def is_printed(text: str, pattern: re.Pattern[str]) -> bool:
    """Return whether a text fits a pattern and has one line, without escape sequences of a terminal."""
    return pattern.fullmatch(text) is not None and text.isprintable()


def save_adapter(adapter: S2FTAdapter, folder: str | Path, *, include_base: bool = True) -> None:
    """Write an adapter; see `S2FTAdapter.save_pretrained`."""
    _check_base_name(adapter)
    path = Path(folder)
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        check_within(path, (names.SELECTED_CHANNELS, names.SELECTION))
        tensors = {key: tensor for patch in adapter.patches.values() for key, tensor in _tensors(patch, include_base)}
        selected = {f"{name}{CHANNELS}": torch.tensor(channels) for name, channels in adapter.channels.items()}
        description = _description(adapter, selected, include_base)
        # One entry only: safetensors writes several in a random order, and a push that goes on compares bytes.
        metadata = {KEY: json.dumps(description)}
        with replacing(path / names.SELECTED_CHANNELS) as unfinished:
            save_file({**tensors, **selected}, unfinished, metadata=metadata)
        write_description(path, description)


def _check_base_name(adapter: S2FTAdapter) -> None:
    """Reject a name or revision of the base model that a file could not be loaded with."""
    for name, value, pattern, constraint in (
        ("base_model", adapter.base_model, BASE_MODEL, "None, a Hub id or a path"),
        ("base_revision", adapter.base_revision, BASE_REVISION, "None or a revision"),
    ):
        valid = value is None or (isinstance(value, str) and is_printed(value, pattern))
        check(valid, name, constraint, value, f"Leave it out: dataclasses.replace(adapter, {name}=None).")


def write_description(folder: Path, description: Mapping[str, Any]) -> None:
    """Write the copy of the description that is read without safetensors."""
    write_text(folder / names.SELECTION, json.dumps(description, indent=2) + "\n")


def digest_of(description: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a description without its digest; as it has that of every tensor, of the whole adapter."""
    content = {key: value for key, value in description.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _tensors(patch: WeightPatch, include_base: bool) -> list[tuple[str, Tensor]]:
    tensors = [(f"{patch.name}{INDEX}", patch.indices), (f"{patch.name}{VALUES}", patch.values)]
    if include_base and patch.base is not None:
        tensors.append((f"{patch.name}{BASE}", patch.base))
    # Slices of a tensor that an adapter shares with another would be refused.
    return [(name, tensor.contiguous().clone()) for name, tensor in tensors]


def _description(adapter: S2FTAdapter, selected: Mapping[str, Tensor], include_base: bool) -> dict[str, Any]:
    description = {
        "schema_version": SCHEMA_VERSION,
        "base_model": adapter.base_model,
        "base_revision": adapter.base_revision,
        "selection": None if adapter.selection is None else json_converter().unstructure(adapter.selection),
        "dtype": str(adapter.dtype).removeprefix("torch."),
        "weights": {
            name: {
                "shape": list(patch.shape),
                "side": patch.side,
                "dim": patch.dim,
                "channels": len(patch.indices),
                "includes_base": include_base and patch.base is not None,
                "sha256": {
                    "index": fingerprint(patch.indices),
                    "values": fingerprint(patch.values),
                    "base": patch.base_fingerprint,
                },
            }
            for name, patch in adapter.patches.items()
        },
        "layers": {name.removesuffix(CHANNELS): fingerprint(tensor) for name, tensor in selected.items()},
        "versions": versions(),
    }
    # As it will be read: tuples become lists.
    description = json.loads(json.dumps(description))
    return {**description, "digest": digest_of(description)}

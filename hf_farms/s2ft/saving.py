"""Save and load a selection: options and base model in `s2ft_config.json`, channels in `s2ft_adapter.safetensors`.

The safetensors file has an entry `{layer name}.index` for each layer, int64 `(s,)`, ascending. Checkpoints of
`S2FTCallback` have a whole adapter under these names, which contains the selection; see `adapters/files.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hf_farms.config import S2FTConfig
from hf_farms.errors import DataError
from hf_farms.files import names
from hf_farms.files.atomic_writes import replacing, write_text
from hf_farms.files.dataclass_parsing import parse_dataclass
from hf_farms.files.documents import Document, load_json, read_text
from hf_farms.privacy.publishing import published_path
from hf_farms.reports import READABLE_VERSIONS, SCHEMA_VERSION, json_converter, versions
from hf_farms.s2ft.adapters.loading import holds_adapter, read_adapter
from hf_farms.s2ft.selection import Selection

__all__ = ["CONFIG_NAME", "WEIGHTS_NAME", "load_selection", "save_selection"]

CONFIG_NAME, WEIGHTS_NAME = names.SELECTION, names.SELECTED_CHANNELS
END = ".index"


def save_selection(selection: Selection, folder: str | Path, *, model: Any = None) -> None:
    """Write a selection to a folder; a file appears only when it is complete.

    Args:
        selection: the trained channels.
        folder: created if it does not exist.
        model: the model of the selection; its Hub id and revision are saved too.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    config = getattr(model, "config", None)
    content = {
        "schema_version": SCHEMA_VERSION,
        "base_model": published_path(getattr(config, "_name_or_path", None) or "") or None,
        "base_revision": getattr(config, "_commit_hash", None),
        "selection": json_converter().unstructure(selection.config),
        "versions": versions(),
    }
    tensors = {f"{name}{END}": torch.tensor(channels) for name, channels in selection.channels.items()}
    with replacing(path / WEIGHTS_NAME) as unfinished:
        save_file(tensors, unfinished, metadata={"format": "pt"})
    write_text(path / CONFIG_NAME, json.dumps(content, indent=2) + "\n")


def load_selection(folder: str | Path) -> Selection:
    """Load the selection of a training checkpoint: of an adapter, or the files of `save_selection`.

    Raises:
        DataError: files are missing or have another format, or an adapter was made without a selection.
    """
    path = Path(folder)
    if holds_adapter(path):
        adapter = read_adapter(path)
        if adapter.selection is None:
            raise DataError(
                f"{str(folder)!r} must hold a selection, got an adapter that was made by comparing two models.",
                hint="Name a checkpoint that S2FTCallback wrote.",
            )
        return Selection(adapter.selection, adapter.channels)
    try:
        content = load_json(read_text(path / CONFIG_NAME)).data
        if content["schema_version"] not in READABLE_VERSIONS:
            raise ValueError(f"schema version {content['schema_version']!r}")
        config = parse_dataclass(Document(content["selection"]), S2FTConfig)
        with safe_open(path / WEIGHTS_NAME, framework="pt") as file:
            keys = sorted(key for key in file.keys() if key.endswith(END))  # noqa: SIM118 - not a mapping
            indices = {key.removesuffix(END): file.get_tensor(key) for key in keys}
        for name, index in indices.items():
            if index.dtype != torch.int64 or index.ndim != 1 or len(index) == 0 or bool((index.diff() <= 0).any()):
                raise ValueError(f"an index of {name} that is not one of ascending channels")
        channels = {name: tuple(index.tolist()) for name, index in indices.items()}
    except Exception as error:  # a foreign file may raise anything
        raise DataError(
            f"{str(folder)!r} must hold a selection ({CONFIG_NAME}, {WEIGHTS_NAME}), got {str(error).rstrip('.')}.",
            hint="Name a checkpoint that S2FTCallback wrote.",
        ) from error
    return Selection(config, channels)

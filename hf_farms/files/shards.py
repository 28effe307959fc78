"""The index of a sharded checkpoint: which files hold the weights. A file of others, so every name in it is checked."""

from __future__ import annotations

import json
import re
from pathlib import Path

from hf_farms.errors import ModelError

__all__ = ["ENDINGS", "SHARD_OF", "check_shard_name", "shard_names", "weight_map"]

# `model-00002-of-00007.safetensors`: one of how many.
SHARD_OF = re.compile(r"(?P<stem>.+)-(?P<number>\d+)-of-(?P<count>\d+)\.(safetensors|bin)")
# What an index of this kind may name. Pickles are never read without consent, so one must not come in by this door.
ENDINGS = {".safetensors.index.json": (".safetensors",), ".bin.index.json": (".bin", ".pt", ".pth")}
DRIVE = re.compile(r"[A-Za-z]:")
AGAIN = "Download the model again, or use a checkpoint whose index names the files beside it."


def shard_names(index: Path) -> list[str]:
    """Names of the files that an index names, each once.

    Raises:
        ModelError: the index is damaged, or names anything but files in its own folder.
    """
    return sorted(set(weight_map(index).values()))


def weight_map(index: Path) -> dict[str, str]:
    """Tensor -> file, as an index says.

    Raises:
        ModelError: as `shard_names`.
    """
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = list(found.values())
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError("no names")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"index of the shards must be JSON with a weight_map, got a damaged {index.name}.",
            hint="Download the model again.",
        ) from error
    for name in names:
        check_shard_name(name, index.name)
    return dict(found)


def check_shard_name(name: str, index: str) -> None:
    """Refuse what is no name of a weight file in the folder of the index.

    Args:
        name: from the index.
        index: name of the index, which decides the endings.

    Raises:
        ModelError: absolute, out of the folder, of a Windows path, or with another ending.
    """
    endings = next((found for end, found in ENDINGS.items() if index.endswith(end)), ENDINGS[".safetensors.index.json"])
    if (
        not name.isprintable()
        or "\\" in name
        or DRIVE.match(name)
        # An empty part is the beginning of an absolute path, or nothing at all.
        or any(part.strip() in ("", ".", "..") for part in name.split("/"))
        or not name.endswith(endings)
    ):
        raise ModelError(
            f"shards must be {' or '.join(endings)} files in the folder of the model, got {name!r} in {index}.",
            hint=AGAIN,
        )

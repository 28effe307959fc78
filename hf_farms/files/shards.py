"""Read the index of a sharded checkpoint (`*.index.json`), which is untrusted: every file name in it is checked."""

from __future__ import annotations

import re
from pathlib import Path

from hf_farms.errors import ModelError
from hf_farms.files.documents import load_json, read_text

__all__ = ["ENDINGS", "SHARD_OF", "check_shard_name", "shard_names", "weight_map"]

# Such as `model-00002-of-00007.safetensors`.
SHARD_OF = re.compile(r"(?P<stem>.+)-(?P<number>\d+)-of-(?P<count>\d+)\.(safetensors|bin)")
# Index -> suffixes of its shards. A safetensors index must not name pickles, which are never read without consent.
ENDINGS = {".safetensors.index.json": (".safetensors",), ".bin.index.json": (".bin", ".pt", ".pth")}
SAFETENSORS = ENDINGS[".safetensors.index.json"]
DRIVE = re.compile(r"[A-Za-z]:")
REPAIR = "Download the model again, or use a checkpoint whose index names files in its own folder."


def shard_names(index: Path) -> list[str]:
    """Return the sorted names of the shards in an index.

    Raises:
        ModelError: the index is damaged, or names files outside its own folder.
    """
    return sorted(set(weight_map(index).values()))


def weight_map(index: Path) -> dict[str, str]:
    """Return the weight map of an index: tensor name -> file name.

    Raises:
        ModelError: as `shard_names`.
    """
    try:
        mapping = load_json(read_text(index)).data["weight_map"]
        names = list(mapping.values())
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError("no names")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"index of the shards must be JSON with a weight_map, got a damaged {index.name}.",
            hint="Download the model again.",
        ) from error
    for name in names:
        check_shard_name(name, index.name)
    return dict(mapping)


def check_shard_name(name: str, index: str) -> None:
    """Refuse a name that is not a weight file in the folder of the index.

    Args:
        name: from the index.
        index: file name of the index, which determines the allowed suffixes.

    Raises:
        ModelError: the name is absolute, leads out of the folder, is a Windows path, or has another suffix.
    """
    endings = next((ends for suffix, ends in ENDINGS.items() if index.endswith(suffix)), SAFETENSORS)
    if (
        not name.isprintable()
        or "\\" in name
        or DRIVE.match(name)
        # An empty part means an absolute path or an empty name.
        or any(part.strip() in ("", ".", "..") for part in name.split("/"))
        or not name.endswith(endings)
    ):
        raise ModelError(
            f"shards must be {' or '.join(endings)} files in the folder of the model, got {name!r} in {index}.",
            hint=REPAIR,
        )

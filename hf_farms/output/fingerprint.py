"""Fingerprint of a run: everything that determines the bytes of its result, to recognize unfinished work."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from hf_farms.reports import versions

__all__ = ["fingerprint", "hash_of_file", "hash_of_tokens"]

SHA256 = re.compile("[0-9a-f]{64}")


def fingerprint(*, weights: Sequence[Path], tokens: Mapping[str, Iterable[Tensor]], device: str) -> dict[str, object]:
    """Return model, data and versions as one flat mapping: the fingerprint of a run without its settings.

    Args:
        weights: the weight files, which are read once in full unless they are in the Hub's cache.
        tokens: purpose -> batches of token ids.
        device: the type of the device, such as "cuda".

    Returns:
        Name -> value; hashes are SHA-256 in hexadecimal.
    """
    return {
        "device": device,
        **{f"weights.{path.name}": hash_of_file(path) for path in weights},
        **{f"tokens.{name}": hash_of_tokens(ids) for name, ids in tokens.items()},
        **{f"versions.{name}": version for name, version in versions().items()},
    }


def hash_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's content; large files in the Hub's cache have it as their name."""
    blob = path.resolve().name
    if SHA256.fullmatch(blob):
        return blob
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of_tokens(tokens: Iterable[Tensor]) -> str:
    """Return the SHA-256 of token ids and their shapes."""
    digest = hashlib.sha256()
    for ids in tokens:
        digest.update(f"{tuple(ids.shape)}".encode())
        digest.update(ids.long().cpu().numpy().tobytes())
    return digest.hexdigest()

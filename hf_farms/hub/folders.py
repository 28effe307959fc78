"""Whether a folder is complete, and what of it is on the Hub."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_farms.errors import OutputError
from hf_farms.output import OutputFolder
from hf_farms.reports import REPORT_NAME

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from hf_farms.reports import Report

__all__ = [
    "IGNORED",
    "check_folder",
    "folder_report",
    "is_published",
    "is_unfinished_push",
    "published_files",
    "replaced_weights",
]

INDEX = "model.safetensors.index.json"
# Unfinished work of `OutputFolder`: files and whole folders.
UNFINISHED = ("*.partial", "*.partial/*", ".hf-farms-unfinished/*")
# What a training goes on from, often larger than the model. The arguments may hold the token of whoever trained.
TRAINING_STATE = (
    "training_args.bin",
    "optimizer.pt",
    "optimizer.bin",
    "scheduler.pt",
    "scaler.pt",
    "rng_state*.pth",
    "checkpoint-*/*",
    "global_step*/*",
)
SECRETS = (".env", ".env.*")
# A `*` matches folders too: the second form finds the same deeper down.
IGNORED = UNFINISHED + tuple(f"{place}{name}" for name in TRAINING_STATE + SECRETS for place in ("", "*/"))
# Every new repository may have these.
INITIAL = frozenset({".gitattributes", "README.md"})
# Weights that transformers would look for, in the root of a repository.
WEIGHTS = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")


def check_folder(folder: str | Path) -> Path:
    """Refuse a folder that is no complete checkpoint, before anything is sent.

    Returns:
        The folder.

    Raises:
        OutputError: it is not there, or a file is missing or damaged.
    """
    folder = Path(folder)
    unfinished = OutputFolder(folder)
    if unfinished.path.name.endswith(".partial") or (not folder.exists() and unfinished.partial.exists()):
        raise OutputError(
            f"folder must be finished, got {str(folder)!r}, whose work is not.",
            hint="Run the `hf-farms prune` command that began it again: it goes on where it stopped.",
        )
    if not folder.is_dir():
        raise OutputError(f"folder must be an existing one, got {str(folder)!r}.", hint="Check the path.")
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise OutputError(
            f"folder must hold config.json and *.safetensors, got {str(folder)!r}.",
            hint="Name the folder that `hf-farms prune` wrote.",
        )
    unfinished.tidy()
    _check_shards(folder)
    return folder


def _check_shards(folder: Path) -> None:
    from safetensors import SafetensorError, safe_open

    names = {path.name for path in folder.glob("*.safetensors")}
    if (folder / INDEX).is_file():
        names |= _shards_of(folder / INDEX)
    for name in sorted(names):
        try:
            # Only the header is read; it knows how long the file must be.
            with safe_open(folder / name, framework="numpy"):
                pass
        except (OSError, SafetensorError) as error:
            raise _damaged(folder / name) from error


def _shards_of(index: Path) -> set[str]:
    try:
        return {str(Path(name)) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(index) from error


def _damaged(path: Path) -> OutputError:
    return OutputError(
        f"folder must hold all its weights, got {path.name!r} missing or damaged in {str(path.parent)!r}.",
        hint="Write the folder again.",
    )


def folder_report(folder: Path) -> Report | None:
    """The report of a folder; None: it has none, as what `save_pretrained` wrote.

    Raises:
        DataError: it is damaged, or of a newer version of hf-farms.
    """
    from hf_farms.reports.folders import load_report

    return load_report(folder) if (folder / REPORT_NAME).is_file() else None


def replaced_weights(there: Sequence[str], folder: Path) -> list[str]:
    """Weights in a repository that would be loaded beside those of a folder, or instead of them."""
    return [name for name in there if WEIGHTS.fullmatch(name) and not (folder / name).is_file()]


def is_unfinished_push(api: HfApi, repo_id: str, revision: str | None, folder: Path) -> bool:
    """Whether everything in a repository is in the folder too: an upload of it that stopped half-way.

    The card may have been written again meanwhile.
    """
    found = api.verify_repo_checksums(repo_id, revision=revision, local_dir=folder)
    return {*found.missing_paths, *(mismatch["path"] for mismatch in found.mismatches)} <= INITIAL


def published_files(folder: Path) -> dict[str, Path]:
    """What a push sends: names in the repository, and where they are."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        DEFAULT_IGNORE_PATTERNS,
        filter_repo_objects,
    )

    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name: found[name] for name in filter_repo_objects(found, ignore_patterns=[*IGNORED, *DEFAULT_IGNORE_PATTERNS])
    }


def is_published(api: HfApi, repo_id: str, there: Sequence[str], folder: Path) -> bool:
    """Whether everything in the folder is in the repository too."""
    # What is missing is known without reading all files.
    return (
        set(published_files(folder)) <= set(there)
        and not api.verify_repo_checksums(repo_id, local_dir=folder).mismatches
    )

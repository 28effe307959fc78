"""Whether a folder is complete, and what of it is on the Hub."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hf_farms.errors import ModelError, OutputError
from hf_farms.files.names import MODEL_CONFIG, SELECTED_CHANNELS, SELECTION, WEIGHTS_INDEX
from hf_farms.files.names import WEIGHTS as WEIGHTS_NAME
from hf_farms.files.own_files import is_own_file
from hf_farms.files.shards import SHARD_OF, weight_map
from hf_farms.hub.base_model import WEIGHTS
from hf_farms.hub.contents import Contents, read_contents
from hf_farms.output.allowed_paths import PARTIAL, named_folder, partial_folder
from hf_farms.output.existing_results import remove_leftovers
from hf_farms.reports import REPORT_NAME

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from hf_farms.reports import Report

__all__ = [
    "PublishableFolder",
    "check_folder",
    "check_publishable",
    "folder_report",
    "is_published",
    "is_unfinished_push",
    "replaced_weights",
]

# Every new repository may have these.
INITIAL = frozenset({".gitattributes", "README.md"})


def check_folder(folder: str | Path) -> Path:
    """Refuse a folder that is not a complete checkpoint, before anything is uploaded.

    Returns:
        The folder.

    Raises:
        OutputError: it does not exist, or a file is missing or damaged.
    """
    folder = Path(folder)
    named = named_folder(folder)
    if named.name.endswith(PARTIAL) or (not os.path.exists(folder) and os.path.exists(partial_folder(named))):
        raise OutputError(
            f"folder must be finished, got {str(folder)!r}, which is unfinished.",
            hint="Run the same `prune_checkpoint` again to resume it.",
        )
    if not os.path.isdir(folder):  # pathlib raises for a name that is too long
        raise OutputError(f"folder must be an existing one, got {str(folder)!r}.", hint="Check the path.")
    if not (is_adapter(folder) or (folder / MODEL_CONFIG).is_file()) or not any(folder.glob("*.safetensors")):
        raise OutputError(
            f"folder must hold config.json and *.safetensors, got {str(folder)!r}.",
            hint="Name the folder that `prune_checkpoint` wrote.",
        )
    remove_leftovers(folder)
    _check_weights(folder)
    return folder


@dataclass(frozen=True)
class PublishableFolder:
    """A folder that was checked to be complete.

    Attributes:
        path: of the folder.
        contents: the files that belong to the model, and those that do not.
        report: None of a folder that `save_pretrained` wrote.
    """

    path: Path
    contents: Contents
    report: Report | None


def check_publishable(folder: str | Path) -> PublishableFolder:
    """Refuse a folder that would be incomplete on the Hub, because a link stands where a file should be.

    Raises:
        OutputError: as `check_folder`, or a link, a pipe or a device stands where a file should be.
        DataError: its report is damaged, or of a newer version of hf-farms.
    """
    folder = check_folder(folder)
    contents = read_contents(folder)
    needed = [SELECTION, SELECTED_CHANNELS] if is_adapter(folder) else [MODEL_CONFIG, *_weights(folder)]
    if (folder / WEIGHTS_INDEX).exists() and not (folder / WEIGHTS_NAME).exists():
        needed.append(WEIGHTS_INDEX)
    for name in needed:
        if name not in contents.files:
            raise OutputError(
                f"{name} must be a file of {str(folder)!r} to be pushed, got {contents.others.get(name, 'none')}.",
                hint=f"Replace it with a copy: cp -L {name} {name}.copy && mv {name}.copy {name}",
            )
    if not any(name.endswith(".safetensors") for name in contents.files):
        raise OutputError(f"folder must hold *.safetensors to be pushed, got none but links in {str(folder)!r}.")
    return PublishableFolder(folder, contents, folder_report(folder))


def is_adapter(folder: Path) -> bool:
    """Return whether a folder has an adapter of S2FT and no model."""
    adapter = (folder / SELECTION).is_file() and (folder / SELECTED_CHANNELS).is_file()
    return adapter and not (folder / MODEL_CONFIG).exists()


def _check_weights(folder: Path) -> None:
    """Refuse a shard that is missing, damaged, or not the one that the index means."""
    from safetensors import SafetensorError, safe_open

    tensors = _indexed(folder)
    files = {path.name for path in folder.glob("*.safetensors") if path.is_file()}
    # A link of another name is neither read nor pushed.
    names = {name for name in files if is_own_file(folder / name) or WEIGHTS.fullmatch(name)} | set(tensors)
    for name in sorted(names):
        try:
            if not (folder / name).is_file():
                raise OSError("missing")
            # Only the header is read; it knows how long the file must be.
            with safe_open(folder / name, framework="numpy") as file:
                lost = tensors.get(name, set()) - set(file.keys())
        except (OSError, SafetensorError) as error:
            raise _damaged(folder / name) from error
        if lost:
            raise OutputError(
                f"folder must hold all its weights, got {name!r} without {min(lost)!r}, which the index lists, in "
                f"{str(folder)!r}.",
                hint="Write the folder again.",
            )


def _indexed(folder: Path) -> dict[str, set[str]]:
    """Return the names of the tensors that the indices of the folder list, by shard."""
    tensors: dict[str, set[str]] = {}
    for index in sorted(folder.glob("*.safetensors.index.json")):
        if not index.is_file():
            continue
        try:
            for tensor, name in weight_map(index).items():
                tensors.setdefault(name, set()).add(tensor)
        except ModelError as error:
            if error.__cause__ is not None:
                raise _damaged(index) from error
            raise OutputError(str(error), hint="Write the folder again.") from error
    return tensors


def _weights(folder: Path) -> list[str]:
    """List the weight files that a complete copy needs: those that transformers loads or could load."""
    names = {path.name for path in folder.iterdir() if WEIGHTS.fullmatch(path.name) and path.suffix == ".safetensors"}
    shards = [shard for name in names if (shard := SHARD_OF.fullmatch(name))]
    for shard in shards:
        stem, count = shard["stem"], int(shard["count"])
        # Of a name with a huge count the first shard that is missing is enough.
        for number in range(1, count + 1):
            name = f"{stem}-{number:0{len(shard['number'])}d}-of-{shard['count']}.safetensors"
            names.add(name)
            if not (folder / name).exists():
                break
    if shards and WEIGHTS_NAME not in names and not (folder / WEIGHTS_INDEX).exists():
        names.add(WEIGHTS_INDEX)
    return sorted(names | set(_indexed(folder)))


def _damaged(path: Path) -> OutputError:
    return OutputError(
        f"folder must hold all its weights, got {path.name!r} missing or damaged in {str(path.parent)!r}.",
        hint="Write the folder again.",
    )


def folder_report(folder: Path) -> Report | None:
    """Read the report of a folder; None if it has none, such as one that `save_pretrained` wrote.

    Raises:
        DataError: the report is damaged, or of a newer version of hf-farms.
    """
    from hf_farms.reports.folders import load_report

    return load_report(folder) if (folder / REPORT_NAME).is_file() else None


def replaced_weights(remote_files: Sequence[str], folder: Path) -> list[str]:
    """List weight files of a repository that would be loaded in addition to those of a folder, or instead of them."""
    return [name for name in remote_files if WEIGHTS.fullmatch(name) and not (folder / name).is_file()]


def is_unfinished_push(api: HfApi, repo_id: str, revision: str | None, folder: Path) -> bool:
    """Whether the repository holds nothing but files of the folder: an interrupted upload of it.

    The card may have been rewritten in the meantime.
    """
    checksums = api.verify_repo_checksums(repo_id, revision=revision, local_dir=folder)
    return {*checksums.missing_paths, *(mismatch["path"] for mismatch in checksums.mismatches)} <= INITIAL


def is_published(api: HfApi, repo_id: str, remote_files: Sequence[str], folder: Path) -> bool:
    """Whether the repository already holds every file of the staged folder."""
    # Compare names first, as checksums need all files to be read.
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} <= set(
        remote_files
    ) and not api.verify_repo_checksums(repo_id, local_dir=folder).mismatches

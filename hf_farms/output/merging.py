"""Merge the shards of a finished checkpoint into files of up to 5 GB, in place and resumable at any moment.

The new files are planned from the headers of the shards. Tensors are copied shard by shard, and a shard is deleted when
the disk has its copy: no second checkpoint is on the disk at any time, and the largest shard is the most that is there
twice. After a kill, a shard that is still there is copied again to the same place.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from huggingface_hub import split_state_dict_into_shards_factory

from hf_farms.errors import HfFarmsWarning, OutputError
from hf_farms.files.atomic_writes import replacing, write_text, writing
from hf_farms.files.names import WEIGHTS_INDEX
from hf_farms.files.path_checks import check_within

__all__ = ["MAX_SHARD_SIZE", "merge_shards"]

# As of huggingface_hub; `save_pretrained` counts sizes in the same way.
MAX_SHARD_SIZE = "5GB"
PATTERN = "model{suffix}.safetensors"
# In the state folder: the plan, and a mark that all shards are copied.
PLAN, COPIED = "plan.json", "copied"
CHUNK = 2**24
# A safetensors file is the length of its header, the header, and the tensors; the first tensor is aligned.
LENGTH, ALIGNMENT = 8, 8


@dataclass(frozen=True)
class _Piece:
    """Bytes of a tensor: its shard and the place there, its new file and the place in that."""

    shard: str
    begin: int
    file: str
    place: int
    size: int


@dataclass(frozen=True)
class _Plan:
    """New files with their headers and sizes, the pieces by shard in the order of copying, and the index."""

    headers: dict[str, str]
    sizes: dict[str, int]
    shards: dict[str, list[_Piece]]
    index: dict[str, Any] | None


def merge_shards(
    folder: Path,
    state: Path,
    shards: Sequence[str],
    *,
    max_shard_size: int | str = MAX_SHARD_SIZE,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Replace the shards of a folder by as few files as `save_pretrained` would write, with their index.

    A tensor that is larger than the limit has a file of its own; a single file is `model.safetensors`, without an
    index. If the disk has no room for a second copy of the largest shard, the shards stay, with a warning.

    Args:
        folder: with the shards. A merge that an earlier process began in it is finished.
        state: folder for unfinished files, on the same disk; removed at the end.
        shards: names of all shards, in the order of their tensors.
        max_shard_size: bytes, or a text such as "5GB".
        progress: called with the number of copied shards and of all shards.

    Raises:
        OutputError: a file could not be written; the disk lost a part of the work.
    """
    with writing(folder):
        if not (state / PLAN).exists():
            if not all((folder / name).exists() for name in shards):
                # An earlier process merged them, and was killed before its state was removed.
                shutil.rmtree(state, ignore_errors=True)
                return
            plan = _planned(folder, shards, max_shard_size)
            if plan is None or not _has_room(folder, shards):
                return
            shutil.rmtree(state, ignore_errors=True)
            state.mkdir(parents=True)
            write_text(state / PLAN, json.dumps(asdict(plan)))
        plan = _loaded(state / PLAN)
        if not (state / COPIED).exists():
            _copy_all(folder, state, plan, progress)
            write_text(state / COPIED, "")
        _move(folder, state, plan)
        # The plan goes first: without it nothing is continued.
        (state / PLAN).unlink()
        shutil.rmtree(state)


def _planned(folder: Path, shards: Sequence[str], max_shard_size: int | str) -> _Plan | None:
    """Plan the new files; None if they would be the shards themselves."""
    entries: dict[str, dict[str, Any]] = {}
    for name in shards:
        header, begin = _header(folder / name)
        for tensor, entry in header.items():
            first, last = entry["data_offsets"]
            entries[tensor] = {**entry, "shard": name, "begin": begin + first, "size": last - first}
    split = split_state_dict_into_shards_factory(
        entries,
        get_storage_size=lambda entry: entry["size"],
        filename_pattern=PATTERN,
        max_shard_size=max_shard_size,
    )
    groups = {file: set(tensors) for file, tensors in split.filename_to_tensors.items()}
    before = [{tensor for tensor, entry in entries.items() if entry["shard"] == name} for name in shards]
    if sorted(map(sorted, groups.values())) == sorted(map(sorted, before)):
        return None
    headers, sizes = {}, {}
    pieces: dict[str, list[_Piece]] = {name: [] for name in shards}
    for file, tensors in split.filename_to_tensors.items():
        headers[file], sizes[file], places = _layout({tensor: entries[tensor] for tensor in tensors})
        for tensor, place in places.items():
            entry = entries[tensor]
            pieces[entry["shard"]].append(_Piece(entry["shard"], entry["begin"], file, place, entry["size"]))
    index = None
    if split.is_sharded:
        parameters = sum(math.prod(entry["shape"]) for entry in entries.values())
        weights = dict(sorted(split.tensor_to_filename.items()))
        index = {"metadata": {"total_parameters": parameters, **split.metadata}, "weight_map": weights}
    return _Plan(headers, sizes, pieces, index)


def _layout(entries: dict[str, dict[str, Any]]) -> tuple[str, int, dict[str, int]]:
    """Return the header of a file, its size, and the place of each tensor in it."""
    # Wide numbers first, as safetensors writes them: each tensor lies at a multiple of its own width.
    names = sorted(entries, key=lambda name: (-_width(entries[name]), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset, offsets = 0, {}
    for name in names:
        entry = entries[name]
        offsets[name] = offset
        header[name] = {"dtype": entry["dtype"], "shape": entry["shape"]}
        header[name]["data_offsets"] = [offset, offset + entry["size"]]
        offset += entry["size"]
    text = json.dumps(header, separators=(",", ":"))
    text += " " * (-len(text.encode()) % ALIGNMENT)
    begin = LENGTH + len(text.encode())
    return text, begin + offset, {name: begin + place for name, place in offsets.items()}


def _width(entry: dict[str, Any]) -> int:
    """Return the bytes of a number, from those of the tensor."""
    count = math.prod(entry["shape"])
    return int(entry["size"]) // count if count else 0


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the entries of a safetensors file that this process or an earlier one wrote, and the place of its data."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    ordered = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    return dict(ordered), LENGTH + length


def _has_room(folder: Path, shards: Sequence[str]) -> bool:
    needed, free = max((folder / name).stat().st_size for name in shards), shutil.disk_usage(folder).free
    # The plan and the headers are small.
    if free >= needed + 2**20:
        return True
    warnings.warn(
        f"{len(shards)} files of weights were not merged into fewer: the disk has {free / 1e9:.3g} GB free, which is "
        f"less than the largest of them ({needed / 1e9:.3g} GB). transformers loads them as they are.",
        HfFarmsWarning,
        stacklevel=4,
    )
    return False


def _loaded(path: Path) -> _Plan:
    fields = json.loads(path.read_text(encoding="utf-8"))
    pieces = {name: [_Piece(**piece) for piece in each] for name, each in fields["shards"].items()}
    return _Plan(fields["headers"], fields["sizes"], pieces, fields["index"])


def _copy_all(folder: Path, state: Path, plan: _Plan, progress: Callable[[int, int], None]) -> None:
    """Copy all shards into the new files, and delete each one after its copy is on the disk."""
    begun = any(not (folder / name).exists() for name in plan.shards)
    for file, header in plan.headers.items():
        if begun and not (state / file).exists():
            raise _lost(folder, file)
        text = header.encode()
        # Of an earlier process, what was copied stays.
        with (state / file).open("r+b" if (state / file).exists() else "xb") as target:
            target.write(len(text).to_bytes(LENGTH, "little") + text)
    progress(0, len(plan.shards))
    for done, (name, pieces) in enumerate(plan.shards.items(), 1):
        if (folder / name).exists():
            _copy_shard(folder / name, state, pieces)
            (folder / name).unlink()
        progress(done, len(plan.shards))
    for file, size in plan.sizes.items():
        if (state / file).stat().st_size != size:
            raise _lost(folder, file)


def _lost(folder: Path, file: str) -> OutputError:
    return OutputError(
        f"unfinished work must be complete, got {file!r} without all its tensors in {str(folder)!r}.",
        hint="Begin again with `overwrite=True`.",
    )


def _copy_shard(path: Path, state: Path, pieces: Sequence[_Piece]) -> None:
    targets: dict[str, BinaryIO] = {}
    with path.open("rb") as source:
        try:
            for piece in pieces:
                if piece.file not in targets:
                    targets[piece.file] = (state / piece.file).open("r+b")
                source.seek(piece.begin)
                targets[piece.file].seek(piece.place)
                _copy_bytes(source, targets[piece.file], piece.size)
            for target in targets.values():
                target.flush()
                # The only other copy is deleted next.
                os.fsync(target.fileno())
        finally:
            for target in targets.values():
                target.close()


def _copy_bytes(source: BinaryIO, target: BinaryIO, size: int) -> None:
    while size:
        chunk = source.read(min(size, CHUNK))
        if not chunk:
            raise OutputError("shards must not change while they are merged, got one that was truncated.")
        target.write(chunk)
        size -= len(chunk)


def _move(folder: Path, state: Path, plan: _Plan) -> None:
    """Move the new files into the folder, in which no shard is left, and write their index."""
    check_within(folder, list(plan.headers))
    for file in plan.headers:
        if (state / file).exists():
            (state / file).replace(folder / file)
    if plan.index is None:
        (folder / WEIGHTS_INDEX).unlink(missing_ok=True)
        return
    with replacing(folder / WEIGHTS_INDEX, aside=state) as path:
        path.write_text(json.dumps(plan.index, indent=2) + "\n", encoding="utf-8")

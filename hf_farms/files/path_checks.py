"""Checks of output paths: refuse, before any work, a path that cannot or must not be written."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from hf_farms.errors import OutputError
from hf_farms.files.paths import kind_of, nearest

__all__ = [
    "FIGURE_SOFTWARE",
    "check_figures",
    "check_file",
    "check_name",
    "check_not_cached",
    "check_parent",
    "check_replaceable",
    "check_within",
    "choose_another",
]

# Bytes reserved for the names of files inside an output folder.
RESERVED_BYTES = 128
# "Software" in the metadata of figures, which stands in front of the image of a PNG.
FIGURE_SOFTWARE = "hf-farms"
FIGURE_MARK, HEAD_BYTES = b"tEXtSoftware\0" + FIGURE_SOFTWARE.encode(), 512
CACHED_REPOSITORY = re.compile(r"(models|datasets|spaces)--.+")


def check_file(path: str | Path, *, argument: str = "output") -> None:
    """Refuse a file that must not be replaced or cannot be written.

    Args:
        path: must be absent or a regular file, in a writable folder; missing folders are created later.
        argument: the name of the path in the error.

    Raises:
        OutputError: the path is a folder, link, pipe, socket or device, is in the Hub's cache, or is too long.
    """
    path = Path(path)
    check_name(path, argument=argument)
    check_replaceable(path, argument=argument)
    check_parent(path.parent, argument=argument)


def check_replaceable(path: Path, *, argument: str = "path") -> None:
    """Refuse anything but a regular file or an absent path, because a rename replaces whatever it finds.

    Raises:
        OutputError: the path is a folder, link, pipe, socket or device, or is in the Hub's cache.
    """
    kind = kind_of(path)
    if kind == "folder":
        raise OutputError(f"{argument} must be a file, got the folder {str(path)!r}.", hint="Name a file inside it.")
    if kind not in (None, "file"):
        raise OutputError(
            f"{argument} must be a regular file or not exist, got the {kind} {str(path)!r}.",
            hint=choose_another(argument),
        )
    check_not_cached(path, argument=argument)


def check_within(folder: Path, names: Iterable[str], *, argument: str = "folder") -> None:
    """Apply `check_replaceable` to files of a folder, which may contain links to files elsewhere.

    Args:
        folder: an existing folder.
        names: of the files, relative to the folder.
        argument: the name of the folder in the error.

    Raises:
        OutputError: as `check_replaceable`, or a parent folder of a file is something else.
    """
    for name in names:
        parent = folder
        for part in Path(name).parts[:-1]:
            parent = parent / part
            if (kind := kind_of(parent)) not in (None, "folder"):
                raise OutputError(
                    f"{argument} must hold no {kind} where hf-farms writes, got {str(parent)!r}. Move it away."
                )
        check_replaceable(folder / name, argument=Path(name).name)


def check_figures(folder: Path, names: Iterable[str], *, argument: str, overwrite: str = "") -> None:
    """Refuse to replace figures that hf-farms did not draw.

    Args:
        folder: for the figures.
        names: of the files, relative to the folder.
        argument: the name of the output in the error.
        overwrite: the call that replaces such files, if there is one.

    Raises:
        OutputError: a file is there, and its metadata do not name hf-farms.
    """
    for path in (folder / name for name in names):
        if path.is_file() and FIGURE_MARK not in _head(path):
            raise OutputError(
                f"{argument} must not replace what others drew, got {str(path)!r}, which is not a figure of hf-farms.",
                hint=f"Move that file away, choose another `{argument}`, or replace it with `{overwrite}`."
                if overwrite
                else f"Move that file away, or choose another `{argument}`.",
            )


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return b""


def check_name(path: Path, *, argument: str = "output", suffix: str = "") -> None:
    """Refuse a path whose names are too long for the file system.

    Args:
        path: to be created.
        argument: the name of the path in the error.
        suffix: appended to the file name while it is written.
    """
    existing = nearest(path.absolute().parent)
    name_max = _limit(existing, "PC_NAME_MAX", 255)
    *parents, name = (*path.parts, "") if path.name in ("", "..") else path.parts
    for part, limit in [*((part, name_max) for part in parents), (name, name_max - len(suffix))]:
        if len(os.fsencode(part)) > limit:
            raise OutputError(
                f"{argument} must have names of at most {limit} bytes, got {len(os.fsencode(part))} in {_short(part)}.",
                hint=choose_another(argument, "a shorter"),
            )
    path_max = _limit(existing, "PC_PATH_MAX", 4096) - RESERVED_BYTES
    if len(os.fsencode(path)) > path_max:
        raise OutputError(
            f"{argument} must be a path of at most {path_max} bytes, got {len(os.fsencode(path))} in "
            f"{_short(str(path))}.",
            hint=choose_another(argument, "a shorter"),
        )


def check_parent(folder: Path, *, argument: str = "output") -> None:
    """Refuse a folder in which nothing can be written: it is below a file, or write permission is missing."""
    existing = nearest(folder)
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise OutputError(
            f"{argument} must be in a writable folder, got {str(existing)!r}.", hint=choose_another(argument, "another")
        )


def check_not_cached(path: Path, *, argument: str = "output") -> None:
    """Refuse a path in the Hub's cache, whose files many programs share."""
    real = Path(os.path.realpath(path))
    for folder in (real, *real.parents):
        repository = CACHED_REPOSITORY.fullmatch(folder.name) and (
            (folder / "snapshots").is_dir() or (folder / "blobs").is_dir()
        )
        converted = folder.parent.name == "original" and folder.parent.parent.name == "hf_farms" and folder.is_dir()
        if repository or converted:
            raise OutputError(
                f"{argument} must not be in the Hub's cache, got {str(path)!r}.",
                hint=choose_another(argument, "another"),
            )


def choose_another(argument: str, which: str = "another") -> str:
    """Return the advice for a path that cannot be used."""
    place = f"`{argument}`" if argument in ("output", "figures") else "place"
    return f"Choose {which} {place}."


def _limit(folder: Path, name: str, default: int) -> int:
    try:
        return os.pathconf(folder, name)
    except (AttributeError, OSError, ValueError):  # Windows
        return default


def _short(name: str) -> str:
    return repr(name if len(name) <= 40 else f"{name[:37]}...")

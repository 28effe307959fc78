"""Paths: what kind of entry one is, whether two are the same, and the name of a folder."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

__all__ = [
    "folder_name",
    "is_inside",
    "is_same",
    "kind_of",
    "nearest",
    "special_kind",
    "with_home",
    "with_name",
]

KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


def kind_of(path: Path) -> str | None:
    """Return the kind of a path without following links.

    Returns:
        "file", "folder", "link", "pipe", "socket", "device" or "special file"; None if the path does not exist.
    """
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    return KINDS.get(stat.S_IFMT(mode), "special file")


def special_kind(path: Path) -> str | None:
    """Return "pipe", "socket" or "device" if a path, links followed, is one; None for files, folders and nothing."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # nothing that could be opened
        return None
    return None if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else KINDS.get(stat.S_IFMT(mode), "special file")


def nearest(path: Path) -> Path:
    """Return the path itself if it exists, else its nearest existing parent."""
    for candidate in (path, *path.absolute().parents):
        with suppress(OSError):
            candidate.stat()
            return candidate
        # Nothing can be created below a broken link.
        if os.path.islink(candidate):
            return candidate
    return Path(path.anchor)


def folder_name(path: str | Path) -> str:
    """Return the name of a folder, also for `.`, `..` and `~`; empty for the root of a disk."""
    return Path(with_name(str(path))).name


def is_inside(path: Path, folder: Path) -> bool:
    """Return whether a path is a folder or inside it, also through links or under another name of that folder."""
    real = Path(os.path.realpath(path))
    return any(is_same(candidate, folder) for candidate in (real, *real.parents))


def is_same(one: Path, other: Path) -> bool:
    """Return whether two paths are the same file or folder, or would be if they existed."""
    try:
        return os.path.samefile(one, other)
    except OSError:  # one of them does not exist
        return os.path.realpath(one) == os.path.realpath(other)


def with_home(path: Path | None) -> Path | None:
    """Expand a leading `~`, which shells do not expand after `=`."""
    return Path(os.path.expanduser(path)) if path is not None else None


def with_name(path: str) -> str:
    """Replace `.`, `..` or `~` by a path that ends in the folder's name, which reports and cards use.

    Other paths and Hub ids are returned unchanged, with a leading `~` expanded.
    """
    if path.startswith("~"):
        path = os.path.expanduser(path)
    if not path or Path(path).name not in ("", ".."):
        return path
    parent, name = os.path.split(os.path.realpath(path))
    return os.path.join(os.path.relpath(parent), name) if name else path

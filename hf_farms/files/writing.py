"""Files that are written: refused where something else is, and complete or not there."""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hf_farms.errors import HfFarmsError, OutputError

__all__ = [
    "UNFINISHED_FILE",
    "another",
    "check_file",
    "check_name",
    "check_not_cached",
    "check_parent",
    "check_replaceable",
    "check_within",
    "folder_name",
    "is_inside",
    "is_same",
    "kind_of",
    "nearest",
    "replacing",
    "special_kind",
    "with_home",
    "with_name",
    "write_text",
    "writing",
]

# What a kill leaves of a file; the Hub never gets it, as it ends in .partial.
UNFINISHED_FILE = ".hf-farms-*.partial"
# Room for the names of files inside a folder.
ROOM = 128
REPOSITORY = re.compile(r"(models|datasets|spaces)--.+")
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
    """What is there, links not followed: "file", "folder", "link", "pipe", "socket" or "device"; None: nothing."""
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    return KINDS.get(stat.S_IFMT(mode), "special file")


def special_kind(path: Path) -> str | None:
    """What is there, or where links lead, if it is neither file nor folder: "pipe", "socket" or "device"; else None."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # nothing that could be opened
        return None
    return None if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else KINDS.get(stat.S_IFMT(mode), "special file")


def check_file(path: str | Path, *, argument: str = "output") -> None:
    """Refuse a file that must not be replaced or cannot be written, before any work.

    Args:
        path: it must be absent or a regular file, in a folder that can be written; missing folders are made later.
        argument: how the error calls it.

    Raises:
        OutputError: a folder, a link, a pipe, a socket or a device; a file in the Hub's cache; a name that is too long.
    """
    path = Path(path)
    check_name(path, argument=argument)
    check_replaceable(path, argument=argument)
    check_parent(path.parent, argument=argument)


def check_replaceable(path: Path, *, argument: str = "path") -> None:
    """Refuse what is no regular file: a rename replaces whatever is there.

    Raises:
        OutputError: a folder, a link, a pipe, a socket or a device; a file in the Hub's cache.
    """
    found = kind_of(path)
    if found == "folder":
        raise OutputError(f"{argument} must be a file, got the folder {str(path)!r}.", hint="Name a file in it.")
    if found not in (None, "file"):
        raise OutputError(
            f"{argument} must be a regular file or not there, got the {found} {str(path)!r}.", hint=another(argument)
        )
    check_not_cached(path, argument=argument)


def check_within(folder: Path, names: Iterable[str], *, argument: str = "folder") -> None:
    """The same for files inside a folder, out of which links lead to what belongs to somebody else.

    Args:
        folder: an existing folder.
        names: of the files, relative to it.
        argument: how the error calls the folder.

    Raises:
        OutputError: as `check_replaceable`, or a folder in between is something else.
    """
    for name in names:
        between = folder
        for part in Path(name).parts[:-1]:
            between = between / part
            if (found := kind_of(between)) not in (None, "folder"):
                raise OutputError(
                    f"{argument} must hold no {found} where hf-farms writes, got {str(between)!r}. Move it away."
                )
        check_replaceable(folder / name, argument=Path(name).name)


def check_name(path: Path, *, argument: str = "output", suffix: str = "") -> None:
    """Refuse a name that the file system cannot hold.

    Args:
        path: to be.
        argument: how the error calls it.
        suffix: what is added to the name while it is written.
    """
    where = nearest(path.absolute().parent)
    longest = _limit(where, "PC_NAME_MAX", 255)
    *parents, name = (*path.parts, "") if path.name in ("", "..") else path.parts
    for part, limit in [*((part, longest) for part in parents), (name, longest - len(suffix))]:
        if len(os.fsencode(part)) > limit:
            raise OutputError(
                f"{argument} must have names of at most {limit} bytes, got {len(os.fsencode(part))} in {_short(part)}.",
                hint=another(argument, "a shorter"),
            )
    total = _limit(where, "PC_PATH_MAX", 4096) - ROOM
    if len(os.fsencode(path)) > total:
        raise OutputError(
            f"{argument} must be a path of at most {total} bytes, got {len(os.fsencode(path))} in {_short(str(path))}.",
            hint=another(argument, "a shorter"),
        )


def check_parent(folder: Path, *, argument: str = "output") -> None:
    """Refuse a place where nothing can be written: in a file, or in a folder without the right to."""
    there = nearest(folder)
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise OutputError(
            f"{argument} must be where files can be written, got {str(there)!r}.", hint=another(argument, "another")
        )


def check_not_cached(path: Path, *, argument: str = "output") -> None:
    """Refuse a place in the Hub's cache, whose files many programs share."""
    real = Path(os.path.realpath(path))
    for place in (real, *real.parents):
        entry = REPOSITORY.fullmatch(place.name) and ((place / "snapshots").is_dir() or (place / "blobs").is_dir())
        converted = place.parent.name == "original" and place.parent.parent.name == "hf_farms" and place.is_dir()
        if entry or converted:
            raise OutputError(
                f"{argument} must not be in the Hub's cache, got {str(path)!r}.", hint=another(argument, "another")
            )


def another(argument: str, which: str = "another") -> str:
    """What to do about a place that cannot be used."""
    option = f"--{argument}" if argument in ("output", "figures") else "place"
    return f"Choose {which} {option}."


def nearest(path: Path) -> Path:
    """The path, or the nearest place above it that exists."""
    for place in (path, *path.absolute().parents):
        with suppress(OSError):
            place.stat()
            return place
        # Of a link to nothing, nothing can be made below.
        if os.path.islink(place):
            return place
    return Path(path.anchor)


def folder_name(path: str | Path) -> str:
    """The name of a folder, also of one that is given by its place (`.`, `..`, `~`); empty for the root of a disk."""
    return Path(with_name(str(path))).name


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path is a folder or lies in it, also through links or under another name of the same folder."""
    real = Path(os.path.realpath(path))
    return any(is_same(place, folder) for place in (real, *real.parents))


def is_same(one: Path, other: Path) -> bool:
    """Whether two paths are one file or folder, or would be."""
    try:
        return os.path.samefile(one, other)
    except OSError:  # one of them is not there
        return os.path.realpath(one) == os.path.realpath(other)


def with_home(path: Path | None) -> Path | None:
    """`~` at the beginning is the user's home: after `=`, shells leave it as it is."""
    return Path(os.path.expanduser(path)) if path is not None else None


def with_name(path: str) -> str:
    """A path that ends in the name of what it leads to, where it was given by its place: `..`, `.`, `~`.

    Reports, cards and folders are named after it. Others stay as they are, hub ids too; `~` is the user's home.
    """
    if path.startswith("~"):
        path = os.path.expanduser(path)
    if not path or Path(path).name not in ("", ".."):
        return path
    parent, name = os.path.split(os.path.realpath(path))
    return os.path.join(os.path.relpath(parent), name) if name else path


@contextmanager
def replacing(path: Path, *, aside: Path | None = None) -> Iterator[Path]:
    """A name to write to, which becomes `path` when everything is written; nothing is left of it otherwise.

    Args:
        path: the file to be.
        aside: a folder for what is not finished, on the same disk; None: beside the file. Libraries have unfinished
            files of their own (safetensors), which a kill leaves where they were.

    Raises:
        OutputError: what is there is no regular file.
    """
    check_replaceable(path)
    unfinished = (aside or path.parent) / UNFINISHED_FILE.replace("*", secrets.token_hex(8))
    try:
        yield unfinished
        check_replaceable(path)
        unfinished.replace(path)
    finally:
        with suppress(OSError):
            unfinished.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a whole file, or nothing."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a full disk or a refused write into one sentence.

    Raises:
        OutputError: the file could not be written.
    """
    try:
        yield
    except HfFarmsError:
        raise
    except Exception as error:  # safetensors raises its own class for a failed write
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        if not full and not isinstance(error, OSError) and "I/O error" not in str(error):
            raise
        reason = "the disk is full" if full else getattr(error, "strerror", None) or str(error)
        raise OutputError(
            f"{str(folder)!r} could not be written: {reason}.",
            hint=f"{'Free some space' if full else 'Check the folder'}, or choose another --output, and run the same "
            "command again.",
        ) from error


def _limit(where: Path, name: str, default: int) -> int:
    try:
        return os.pathconf(where, name)
    except (AttributeError, OSError, ValueError):  # Windows
        return default


def _short(name: str) -> str:
    return repr(name if len(name) <= 40 else f"{name[:37]}...")

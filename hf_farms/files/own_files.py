"""Which files of a folder are its own: regular files, and not links to places that somebody may want to keep private.

A link is read where its user asks for it (weights on another disk), but what it leads to is never copied or pushed.
Files in the Hub's cache are links too, from `snapshots/COMMIT/NAME` to `blobs/HASH` of the same repository: these are
the repository's own.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from pathlib import Path

from hf_farms.errors import OutputError

__all__ = ["copy_file", "describe_kind", "find_files", "foreign_texts", "is_own_file"]

# Names of files in the Hub's cache: SHA-1 of small files, SHA-256 of large ones; of mirrors other hashes.
BLOB = re.compile("[0-9a-f-]{16,}")
CONFIG, TEMPLATES = "config.json", "additional_chat_templates"
TEXTS = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".bpe", ".codes", ".spm")
# What no model or tokenizer is made of; licences are copied in their own way.
NEVER_COPIED = re.compile(r"(LICEN[CS]E|USE_POLICY|NOTICE)([-_.].*)?|modelcard\.json|.+\.index\.json", re.IGNORECASE)
KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def is_own_file(path: Path) -> bool:
    """Whether this is a regular file and no link, or a file of the Hub's cache. The folders above it do not count."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) or (stat.S_ISLNK(mode) and _is_in_cache(path))


def _is_in_cache(link: Path) -> bool:
    snapshots = next((place for place in link.absolute().parents if place.name == "snapshots"), None)
    if snapshots is None:
        return False
    blobs, target = snapshots.parent / "blobs", Path(os.path.realpath(link))
    return (
        not blobs.is_symlink()
        and target.parent == Path(os.path.realpath(blobs))
        and BLOB.fullmatch(target.name) is not None
        and target.is_file()
    )


def describe_kind(path: Path) -> str:
    """What something is that is no file of its own, for a message."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return "gone"
    if stat.S_ISLNK(mode):
        return "a link to another place" if path.exists() else "a link to nothing"
    return KINDS.get(stat.S_IFMT(mode), "no regular file")


def find_files(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Files in a folder and in the folders below it; links to folders are not followed.

    Returns:
        Names of the folder's own files, with `/` between their parts, and where they are; and the names of everything
        else but folders, each with what it is.
    """
    own: dict[str, Path] = {}
    others: dict[str, str] = {}
    for place, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted((*folders, *files)):
            path = Path(place) / name
            if path.is_dir() and not path.is_symlink():
                continue
            short = path.relative_to(folder).as_posix()
            if is_own_file(path):
                own[short] = path
            else:
                others[short] = describe_kind(path)
    return own, others


def foreign_texts(folder: Path) -> tuple[str, ...]:
    """Small files of a model that are links out of it, whose text must not get into a copy of the model.

    Weights are not among them, as they are only computed with, and config.json, without which there is no model. A link
    to the file of the same name in another model's folder is what a user makes to have a model in two places.
    """
    names = [
        path
        for path in folder.iterdir()
        if path.is_symlink() and path.suffix in TEXTS and not NEVER_COPIED.fullmatch(path.name)
    ]
    names += (folder / TEMPLATES).glob("*.jinja") if (folder / TEMPLATES).is_dir() else ()
    return tuple(
        path.relative_to(folder).as_posix()
        for path in sorted(names)
        if path.is_file() and path.name != CONFIG and not _is_of_a_model(path, folder)
    )


def _is_of_a_model(path: Path, folder: Path) -> bool:
    if is_own_file(path) and not path.parent.is_symlink():
        return True
    target = Path(os.path.realpath(path))
    there = target.parents[len(path.relative_to(folder).parts) - 1]
    return target.relative_to(there) == path.relative_to(folder) and (there / CONFIG).is_file()


def copy_file(source: Path, target: Path) -> None:
    """Copy the content of a folder's own file; nothing that lies at the target is written through.

    Raises:
        OutputError: it is no such file, or has become another one.
        OSError: it cannot be read or written.
    """
    if not is_own_file(source):
        raise OutputError(f"files must be regular to be copied, got {str(source)!r}, which is {describe_kind(source)}.")
    # Without waiting for the other end of a pipe, and without following a link that took the file's place.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(os.open(os.path.realpath(source) if source.is_symlink() else source, flags), "rb") as reader:
        if not stat.S_ISREG(os.fstat(reader.fileno()).st_mode):
            raise OutputError(f"files must be regular to be copied, got {str(source)!r}, which has changed.")
        target.unlink(missing_ok=True)
        with target.open("xb") as writer:
            shutil.copyfileobj(reader, writer)

"""Symlinks: tell a folder's own files, which may be copied and pushed, from links out of the folder.

Links are followed for reading (weights on another disk), but their targets may be private and are never copied or
pushed. Exception: the Hub's cache consists of links from `snapshots/COMMIT/NAME` to `blobs/HASH` of the same
repository, and these count as own files.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from pathlib import Path

from hf_farms.errors import OutputError

__all__ = ["copy_file", "describe_kind", "find_files", "foreign_texts", "is_own_file"]

# File names in the Hub's cache: the SHA-1 of small files, the SHA-256 of large ones; mirrors use other hashes.
BLOB = re.compile("[0-9a-f-]{16,}")
CONFIG, TEMPLATES = "config.json", "additional_chat_templates"
TEXTS = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".bpe", ".codes", ".spm")
# Not part of a model or tokenizer; licenses are copied separately.
NEVER_COPIED = re.compile(r"(LICEN[CS]E|USE_POLICY|NOTICE)([-_.].*)?|modelcard\.json|.+\.index\.json", re.IGNORECASE)
KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def is_own_file(path: Path) -> bool:
    """Return whether a path is a regular file and no link, or is in the Hub's cache. Parent folders may be links."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) or (stat.S_ISLNK(mode) and _is_in_cache(path))


def _is_in_cache(link: Path) -> bool:
    snapshots = next((parent for parent in link.absolute().parents if parent.name == "snapshots"), None)
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
    """Describe a path that is not an own file, for a message."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return "gone"
    if stat.S_ISLNK(mode):
        return "a link to another path" if path.exists() else "a broken link"
    return KINDS.get(stat.S_IFMT(mode), "a special file")


def find_files(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Find all files below a folder, without following links to folders.

    Returns:
        The folder's own files: relative POSIX path -> path; and everything else except folders: relative path ->
        description.
    """
    own: dict[str, Path] = {}
    others: dict[str, str] = {}
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted((*folders, *files)):
            path = Path(parent) / name
            if path.is_dir() and not path.is_symlink():
                continue
            relative = path.relative_to(folder).as_posix()
            if is_own_file(path):
                own[relative] = path
            else:
                others[relative] = describe_kind(path)
    return own, others


def foreign_texts(folder: Path) -> tuple[str, ...]:
    """Return the text files of a model that are links out of its folder and must not be copied with it.

    Weights are not listed, because their values are only computed with; nor is config.json, which every model needs. A
    link to the file of the same name in another model's folder is allowed.
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
        if path.is_file() and path.name != CONFIG and not _belongs_to_model(path, folder)
    )


def _belongs_to_model(path: Path, folder: Path) -> bool:
    if is_own_file(path) and not path.parent.is_symlink():
        return True
    target = Path(os.path.realpath(path))
    target_folder = target.parents[len(path.relative_to(folder).parts) - 1]
    same_name = target.relative_to(target_folder) == path.relative_to(folder)
    return same_name and (target_folder / CONFIG).is_file()


def copy_file(source: Path, target: Path) -> None:
    """Copy a folder's own file. A link at the target is replaced, not followed.

    Raises:
        OutputError: the source is not an own file, or was replaced meanwhile.
        OSError: a file cannot be read or written.
    """
    if not is_own_file(source):
        raise OutputError(f"files must be regular to be copied, got {str(source)!r}, which is {describe_kind(source)}.")
    # Do not wait for a pipe, and do not follow a link that replaced the file after the check.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(os.open(os.path.realpath(source) if source.is_symlink() else source, flags), "rb") as reader:
        if not stat.S_ISREG(os.fstat(reader.fileno()).st_mode):
            raise OutputError(f"files must be regular to be copied, got {str(source)!r}, which has changed.")
        target.unlink(missing_ok=True)
        with target.open("xb") as writer:
            shutil.copyfileobj(reader, writer)

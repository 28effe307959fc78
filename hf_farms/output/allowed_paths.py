"""Check where a result may be written: not over an input, the working folder or a home folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from hf_farms.demo import DEMO_FOLDERS
from hf_farms.errors import DataError, OutputError
from hf_farms.files.path_checks import check_file, check_not_cached, choose_another
from hf_farms.files.paths import is_inside, is_same, kind_of, nearest
from hf_farms.output.existing_results import STATE
from hf_farms.reports.base import Report

__all__ = ["PARTIAL", "Reads", "check_apart", "check_folder", "check_output_file", "named_folder", "partial_folder"]

# Suffix of a folder with unfinished work.
PARTIAL = ".partial"

# The inputs of a command: description -> folder, file, demo model, or a name without a path (a Hub id).
Reads = Mapping[str, str | Path | None]
MODEL = "the model"


def named_folder(path: str | Path) -> Path:
    """Return the path of a result with a name at its end; of `.` and `..` that is the path they lead to.

    Raises:
        OutputError: the root of a disk.
    """
    folder = Path(path)
    if folder.name in ("", ".."):
        folder = Path(os.path.realpath(path))
    if not folder.name:
        raise OutputError(f"output must be a folder with a name, got {str(path)!r}. Choose another `output`.")
    return folder


def partial_folder(folder: Path) -> Path:
    """Return the path of unfinished work, next to the final folder."""
    return folder.with_name(folder.name + PARTIAL)


def check_apart(path: Path, reads: Reads, *, argument: str = "output", replaces: bool = False) -> None:
    """Refuse an output path that would overwrite an input, also through links.

    Args:
        path: the output.
        reads: the inputs by description, such as "the model".
        argument: the name of the path in the error.
        replaces: whether the output is a folder whose whole content is replaced.

    Raises:
        OutputError: the output is an input, is inside one, or contains one.
    """
    for what, name in reads.items():
        for location, description in _input_paths(what, name):
            relation = _relation(path, location, replaces)
            if relation is not None:
                raise OutputError(
                    f"{argument} must not {relation} {description}, got {str(path)!r}"
                    f"{'' if str(path) == str(location) else f' and {str(location)!r}'}.",
                    hint=choose_another(argument),
                )


def check_output_file(path: Path, reads: Reads, *, writes: Sequence[type[Report]]) -> None:
    """Refuse a file of results that cannot or must not be written, before any work.

    Args:
        path: of the file to be.
        reads: inputs of the command.
        writes: the reports that the command writes; an earlier one of these is replaced.

    Raises:
        OutputError: as `check_file` and `check_apart`, or a file that is no such report.
    """
    check_file(path)
    check_apart(path, reads)
    # Nothing is lost with an empty file.
    if path.is_file() and path.stat().st_size > 0 and not any(_is_report(path, kind) for kind in writes):
        raise OutputError(
            f"output must be new or an earlier report of the same command, got {str(path)!r}, which is neither.",
            hint="Choose another `output`, or delete that file.",
        )


def _is_report(path: Path, kind: type[Report]) -> bool:
    try:
        kind.load(path)
    except (DataError, OSError):
        return False
    return True


def check_folder(path: Path, *, unfinished: Path, reads: Reads) -> None:
    """Refuse a result folder at a path that must never be replaced, whatever it contains.

    Args:
        path: the result folder.
        unfinished: the folder of unfinished work.
        reads: the inputs of the command.

    Raises:
        OutputError: the path is no folder, contains or is an input, a home folder or the working folder, or is in the
            Hub's cache or in unfinished work.
    """
    if path.name.endswith(PARTIAL):
        raise OutputError(
            f"output must not end in {PARTIAL}, as unfinished work does, got {str(path)!r}.",
            hint=choose_another("output"),
        )
    for folder in (path, unfinished):
        if (kind := kind_of(folder)) not in (None, "folder"):
            raise OutputError(
                f"output must be a folder, got the {kind} {str(folder)!r}.", hint=choose_another("output")
            )
    if not nearest(path.absolute().parent).is_dir():
        raise OutputError(
            f"output must be in a folder, got {str(path)!r}, which is in a file.", hint=choose_another("output")
        )
    if os.path.ismount(path):
        raise OutputError(
            f"output must not be a disk of its own, got {str(path)!r}.",
            hint=f"Name a folder on it: `output={str(path / 'NAME')!r}`",
        )
    for folder in (path, unfinished):
        _check_contains_no_home(folder)
        check_not_cached(folder)
        check_apart(folder, reads, replaces=True)
    for parent in Path(os.path.realpath(path)).parents:
        if kind_of(parent / STATE) is not None:
            raise OutputError(
                f"output must not be in unfinished work, got {str(path)!r}.", hint=choose_another("output")
            )


def _check_contains_no_home(path: Path, *, argument: str = "output") -> None:
    """Refuse to replace a folder that is or contains the working folder or the user's home."""
    protected: dict[str, Callable[[], str | Path]] = {"the working folder": os.getcwd, "your home folder": Path.home}
    for description, find in protected.items():
        with suppress(OSError, RuntimeError):  # it does not exist
            if is_inside(Path(find()), path):
                raise OutputError(
                    f"{argument} must not be {description}, got {str(path)!r}.", hint=choose_another(argument)
                )


def _relation(path: Path, location: Path, replaces: bool) -> str | None:
    if is_same(path, location):
        return "be"
    if location.is_dir() and is_inside(path, location):
        return "be inside"
    return "contain" if replaces and is_inside(location, path) else None


def _input_paths(what: str, name: str | Path | None) -> Iterator[tuple[Path, str]]:
    if name is None:
        return
    demo = DEMO_FOLDERS.get(str(name)) if what.startswith(MODEL) else None
    path = demo or Path(os.path.expanduser(name))
    if os.path.exists(path):  # Path.exists raises for a name that is too long
        yield path, what
    if os.path.isdir(path):
        # Links to weights on another disk.
        for entry in path.iterdir():
            if entry.is_symlink() and entry.is_file():
                yield Path(os.path.realpath(entry)), f"a file of {what}"

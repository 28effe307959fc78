"""Where a result must not go: what the command reads, the folder that it runs in, the user's home."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from hf_farms.demo import demo_model
from hf_farms.errors import OutputError
from hf_farms.files.path_checks import another, check_not_cached
from hf_farms.files.paths import is_inside, is_same, kind_of, nearest
from hf_farms.output.existing_results import STATE

__all__ = ["PARTIAL", "Reads", "check_apart", "check_folder"]

# What the name of unfinished work ends in.
PARTIAL = ".partial"

# What is read -> its name: a folder, a file, `demo`, or something else (a hub id), which cannot be written over.
Reads = Mapping[str, str | Path | None]
MODEL = "the model"


def check_apart(path: Path, reads: Reads, *, argument: str = "output", replaces: bool = False) -> None:
    """Refuse to write over what is read, whatever links lead there.

    Args:
        path: to be written.
        reads: by what it is, such as "the model".
        argument: how the error calls the path.
        replaces: whether it is a folder that is replaced with all that it holds.

    Raises:
        OutputError: it is something that is read, lies inside it, or holds it.
    """
    for what, name in reads.items():
        for place, called in _places(what, name):
            relation = _relation(path, place, replaces)
            if relation is not None:
                raise OutputError(
                    f"{argument} must not {relation} {called}, got {str(path)!r}"
                    f"{'' if str(path) == str(place) else f' and {str(place)!r}'}.",
                    hint=another(argument),
                )


def check_folder(path: Path, *, unfinished: Path, reads: Reads) -> None:
    """Refuse a place where no result may ever be, whatever lies there.

    Args:
        path: of the folder to be.
        unfinished: where it lies until then.
        reads: what is read.
    """
    if path.name.endswith(PARTIAL):
        raise OutputError(
            f"output must not end in {PARTIAL}, as unfinished work does, got {str(path)!r}.", hint=another("output")
        )
    for place in (path, unfinished):
        if (found := kind_of(place)) not in (None, "folder"):
            raise OutputError(f"output must be a folder, got the {found} {str(place)!r}.", hint=another("output"))
    if not nearest(path.absolute().parent).is_dir():
        raise OutputError(f"output must be in a folder, got {str(path)!r}, which is in a file.", hint=another("output"))
    if os.path.ismount(path):
        raise OutputError(
            f"output must not be a disk of its own, got {str(path)!r}.",
            hint=f"Name a folder on it: --output {path / 'NAME'}",
        )
    for place in (path, unfinished):
        _check_not_around(place)
        check_not_cached(place)
        check_apart(place, reads, replaces=True)
    for around in Path(os.path.realpath(path)).parents:
        if kind_of(around / STATE) is not None:
            raise OutputError(f"output must not be in unfinished work, got {str(path)!r}.", hint=another("output"))


def _check_not_around(path: Path, *, argument: str = "output") -> None:
    """Refuse a folder to be replaced that is the one this runs in, the user's home, or one that holds them."""
    places = {"the folder that this runs in": os.getcwd}
    places["your home folder"] = lambda: str(Path.home())
    for what, find in places.items():
        with suppress(OSError, RuntimeError):  # there is none
            if is_inside(Path(find()), path):
                raise OutputError(f"{argument} must not be {what}, got {str(path)!r}.", hint=another(argument))


def _relation(path: Path, place: Path, replaces: bool) -> str | None:
    if is_same(path, place):
        return "be"
    if place.is_dir() and is_inside(path, place):
        return "lie inside"
    return "hold" if replaces and is_inside(place, path) else None


def _places(what: str, name: str | Path | None) -> Iterator[tuple[Path, str]]:
    if name is None:
        return
    place = demo_model() if str(name) == "demo" and what.startswith(MODEL) else Path(os.path.expanduser(name))
    if os.path.exists(place):  # Path.exists raises for a name that is too long
        yield place, what
    if os.path.isdir(place):
        # Weights on another disk.
        for entry in place.iterdir():
            if entry.is_symlink() and entry.is_file():
                yield Path(os.path.realpath(entry)), f"a file of {what}"

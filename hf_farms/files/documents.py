"""Files that people write, edit or download: read within limits, or refused in a sentence that names the line."""

from __future__ import annotations

import json
import reprlib
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Document", "DocumentError", "load_json", "read_text", "shown"]

Key = str | int
# A report of a large mixture of experts has some ten megabytes.
MAX_BYTES = 2**30
KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a named pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}


class DocumentError(ValueError):
    """What is wrong with a document, and in which line of it; the caller names the file."""

    def __init__(self, reason: str, *, line: int | None = None) -> None:
        super().__init__(reason if line is None else f"line {line}: {reason}")


@dataclass(frozen=True)
class Document:
    """Plain data: mappings, lists, texts, numbers, booleans and None.

    Attributes:
        data: of the whole document.
        lines: where an entry stands, by the keys that lead to it; empty where that is not known.
    """

    data: Any
    lines: Mapping[tuple[Key, ...], int] = field(default_factory=dict)

    def line(self, path: tuple[Key, ...]) -> int | None:
        """The line of an entry, or of the nearest one around it."""
        return next((self.lines[path[:end]] for end in range(len(path), -1, -1) if path[:end] in self.lines), None)


def read_text(path: Path, *, limit: int = MAX_BYTES) -> str:
    """The text of a regular file; pipes and devices, which may never end, are not opened.

    Args:
        path: links are followed.
        limit: bytes.

    Raises:
        DocumentError: not a regular file, too large, or not UTF-8.
        OSError: not there, or not readable.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in KINDS.items() if is_kind(mode)), "no regular file")
        raise DocumentError(f"it is {kind} and must be a file")
    with path.open("rb") as file:
        # Files of /proc say that they are empty.
        data = file.read(limit + 1)
    if len(data) > limit:
        raise DocumentError(f"it has more than {limit:,} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DocumentError(f"byte 0x{data[error.start]:02x} is not utf-8", line=line) from error


def load_json(text: str, *, allow_nan: bool = False) -> Document:
    """Read JSON; a key that stands twice in an object is an error, as either value could be the one meant.

    Args:
        text: of the file.
        allow_nan: whether NaN and Infinity are numbers, as Python writes them.

    Raises:
        DocumentError: not JSON, or nested too deeply.
    """
    try:
        data = json.loads(
            text.removeprefix("\ufeff"),
            object_pairs_hook=_without_repetition,
            parse_constant=float if allow_nan else _no_number,
        )
    except DocumentError:
        raise
    except json.JSONDecodeError as error:
        raise DocumentError(f"{error.msg} at column {error.colno}", line=error.lineno) from error
    except ValueError as error:  # an integer with thousands of digits
        raise DocumentError("it has a number with too many digits") from error
    except RecursionError as error:
        raise DocumentError("it is nested too deeply") from error
    return Document(data)


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in found if keys.count(key) > 1)
        raise DocumentError(f"key {shown(twice)} stands twice in one object")
    return found


def _no_number(name: str) -> float:
    raise DocumentError(f"{name} is not a number that JSON has")


_SHORT = reprlib.Repr()
_SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong, _SHORT.maxlevel = 60, 60, 40, 2


def shown(value: object) -> str:
    """A value for a sentence: short, whatever it holds."""
    if value is None:
        return "nothing"
    try:
        return str(value).lower() if isinstance(value, bool) else _SHORT.repr(value)
    except ValueError:  # Python writes no number of so many digits
        return "a number of thousands of digits"

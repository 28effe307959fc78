"""Read text and JSON files of users, with limits on size and depth and errors that name the line; write JSON again."""

from __future__ import annotations

import json
import reprlib
import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Document", "DocumentError", "dump_json", "load_json", "read_text", "short_repr"]

Key = str | int
# A report of a large mixture of experts has about ten megabytes.
MAX_BYTES = 2**30
KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a named pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}


class DocumentError(ValueError):
    """A fault in a document, with its line where known; the caller adds the name of the file."""

    def __init__(self, reason: str, *, line: int | None = None) -> None:
        super().__init__(reason if line is None else f"line {line}: {reason}")


@dataclass(frozen=True)
class Document:
    """The parsed data of a file: mappings, lists, strings, numbers, booleans and None.

    Attributes:
        data: the whole document.
        lines: keys that lead to an entry -> its line; empty for formats without lines.
    """

    data: Any
    lines: Mapping[tuple[Key, ...], int] = field(default_factory=dict)

    def line(self, path: tuple[Key, ...]) -> int | None:
        """Return the line of an entry, or of the nearest entry that contains it; None: unknown."""
        return next((self.lines[path[:end]] for end in range(len(path), -1, -1) if path[:end] in self.lines), None)


def read_text(path: Path, *, limit: int = MAX_BYTES) -> str:
    """Read a regular file as UTF-8. Pipes and devices, which may never end, are not opened.

    Args:
        path: links are followed.
        limit: largest size in bytes.

    Raises:
        DocumentError: the file is not regular, too large, or not UTF-8.
        OSError: the file is missing or not readable.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in KINDS.items() if is_kind(mode)), "a special file")
        raise DocumentError(f"it is {kind} and must be a file")
    with path.open("rb") as file:
        # Not by its size: files in /proc report 0 bytes.
        data = file.read(limit + 1)
    if len(data) > limit:
        raise DocumentError(f"it has more than {limit:,} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DocumentError(f"byte 0x{data[error.start]:02x} is not utf-8", line=line) from error


def load_json(text: str, *, allow_nan: bool = False) -> Document:
    """Parse JSON, and refuse duplicate keys, because either value could be intended.

    Args:
        text: the content of the file.
        allow_nan: accept NaN and Infinity, which Python writes but JSON does not allow.

    Raises:
        DocumentError: the text is not JSON, or is nested too deeply.
    """
    try:
        data = json.loads(
            text.removeprefix("\ufeff"),
            object_pairs_hook=_unique_keys,
            parse_constant=float if allow_nan else _refuse_constant,
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


def dump_json(value: object, *, sort_keys: bool = False) -> str:
    """Return indented JSON that can be written as UTF-8: half of a surrogate pair stays escaped."""
    text = json.dumps(value, indent=2, sort_keys=sort_keys, ensure_ascii=False) + "\n"
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, indent=2, sort_keys=sort_keys) + "\n"
    return text


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        duplicate = next(key for key, count in counts.items() if count > 1)
        raise DocumentError(f"key {short_repr(duplicate)} occurs twice in one object")
    return entries


def _refuse_constant(name: str) -> float:
    raise DocumentError(f"{name} is not a number that JSON has")


# Python refuses to print numbers of more than 4,300 digits, and with 3.14 reprlib describes them in words of its own.
PRINTED_BITS, LONG_NUMBER = 14_000, "a number of thousands of digits"
_SHORT = reprlib.Repr()
_SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong, _SHORT.maxlevel = 60, 60, 40, 2


def short_repr(value: object) -> str:
    """Return a short representation of any value, for an error message."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and abs(value).bit_length() > PRINTED_BITS:
        return LONG_NUMBER
    try:
        return _SHORT.repr(value)
    except ValueError:
        return LONG_NUMBER

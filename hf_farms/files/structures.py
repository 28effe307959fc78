"""Plain data -> dataclasses, by their annotations and with no conversion that could hide a mistake."""

from __future__ import annotations

import difflib
import math
import sys
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from hf_farms.files.documents import Document, DocumentError, Key, shown

__all__ = ["structure"]

T = TypeVar("T")
LARGEST = 2**63


class _Mismatch(Exception):  # noqa: N818
    """What an entry must be and is not; or `reason`, a sentence of its own."""

    def __init__(self, path: tuple[Key, ...], wanted: str, *, found: object = None, reason: str | None = None) -> None:
        self.path = path
        name = ".".join(str(key) for key in path) or "the document"
        super().__init__(reason or f"{name} must be {wanted}, got {shown(found)}{_advice(wanted, found)}")


def _advice(wanted: str, found: object) -> str:
    """YAML takes 1e-3 for text, and people put numbers in quotes."""
    if "number" not in wanted or not isinstance(found, str):
        return ""
    try:
        number = float(found)
    except ValueError:
        return ""
    exact = "whole" not in wanted and math.isfinite(number)
    return f", which is text: write {number!r}" if exact else ", which is text"


def structure(document: Document, kind: type[T]) -> T:
    """Make a dataclass of a document.

    Args:
        document: of the file.
        kind: a dataclass of texts, numbers, booleans, None, literals, tuples, mappings and dataclasses.

    Raises:
        DocumentError: an entry that is missing, unknown, of another type, or out of range, with its line.
    """
    try:
        return _build(document.data, kind, ())  # type: ignore[no-any-return]
    except _Mismatch as error:
        raise DocumentError(str(error), line=document.line(error.path)) from error


def _build(value: Any, hint: Any, path: tuple[Key, ...]) -> Any:
    origin = get_origin(hint)
    if is_dataclass(hint):
        return _dataclass(value, hint, path)  # type: ignore[arg-type]
    if origin in (Union, types.UnionType):
        return _union(value, get_args(hint), path)
    if origin is tuple:
        return _tuple(value, get_args(hint), path)
    if origin in (dict, Mapping):
        if not isinstance(value, dict):
            raise _Mismatch(path, "a mapping", found=value)
        return {key: _build(item, get_args(hint)[1], (*path, key)) for key, item in value.items()}
    if not _fits(value, hint):
        raise _Mismatch(path, _name(hint), found=value)
    return float(value) if hint is float else value


def _dataclass(value: Any, kind: type, path: tuple[Key, ...]) -> Any:
    if not isinstance(value, dict):
        raise _Mismatch(path, "a mapping of settings", found=value)
    hints = _hints(kind)
    for key in value:
        if key not in hints:
            where = f" of {'.'.join(map(str, path))}" if path else ""
            close = difflib.get_close_matches(key, hints, n=1)
            advice = f", did you mean {close[0]!r}?" if close else ""
            raise _Mismatch((*path, key), "", reason=f"{shown(key)} is no entry{where}{advice}")
    for field in fields(kind):
        if field.name not in value and field.default is MISSING and field.default_factory is MISSING:
            raise _Mismatch((*path, field.name), "", reason=f"{'.'.join(map(str, (*path, field.name)))} is missing")
    entries = {key: _build(item, hints[key], (*path, key)) for key, item in value.items()}
    try:
        return kind(**entries)
    except ValueError as error:
        # Configs begin with the name of their option.
        name = str(error).split(" ", 1)[0]
        raise _Mismatch((*path, name) if name in hints else path, "", reason=str(error).rstrip(".")) from error


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _union(value: Any, hints: tuple[Any, ...], path: tuple[Key, ...]) -> Any:
    # A whole number that may be a float too stays one.
    for hint in hints:
        if not is_dataclass(hint) and not get_origin(hint) and hint is not float and _fits(value, hint):
            return value
    others = [hint for hint in hints if is_dataclass(hint) or get_origin(hint) or hint is float]
    failures = []
    for hint in others:
        try:
            return _build(value, hint, path)
        except _Mismatch as error:
            failures.append(error)
    # Inside a section that is there, it says which entry is wrong.
    deeper = [error for error in failures if error.path != path]
    raise deeper[0] if deeper else _Mismatch(path, " or ".join(_name(hint) for hint in hints), found=value)


def _tuple(value: Any, hints: tuple[Any, ...], path: tuple[Key, ...]) -> tuple[Any, ...]:
    any_length = hints[-1] is Ellipsis
    if not isinstance(value, list) or (not any_length and len(value) != len(hints)):
        raise _Mismatch(path, "a list" if any_length else f"a list of {len(hints)}", found=value)
    each = [hints[0]] * len(value) if any_length else hints
    return tuple(_build(item, hint, (*path, place)) for place, (item, hint) in enumerate(zip(value, each, strict=True)))


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(hint))
    if hint in (None, type(None)):
        return value is None
    if isinstance(value, bool):
        return hint is bool
    if hint is float:
        return isinstance(value, int | float) and abs(value) <= sys.float_info.max  # neither infinite nor NaN
    if hint is int:
        return isinstance(value, int) and abs(value) < LARGEST
    return isinstance(value, hint)


def _name(hint: Any) -> str:
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        return repr(choices[0]) if len(choices) == 1 else f"one of {', '.join(map(str, choices))}"
    names = {str: "text", float: "a number", int: "a whole number", bool: "true or false", type(None): "null"}
    return names.get(hint, "a list" if get_origin(hint) is tuple else "a mapping")

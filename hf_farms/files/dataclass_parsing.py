"""Parse JSON or YAML into dataclasses by their annotations, without conversions that could hide a mistake."""

from __future__ import annotations

import difflib
import math
import sys
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from hf_farms.files.documents import Document, DocumentError, Key, short_repr

__all__ = ["parse_dataclass"]

T = TypeVar("T")
# Integers at or above it (64 bits) are refused.
INT_LIMIT = 2**63


class _Mismatch(Exception):  # noqa: N818
    """An entry with a value of the wrong type, or with another fault that `reason` describes."""

    def __init__(
        self, path: tuple[Key, ...], expected: str, *, value: object = None, reason: str | None = None
    ) -> None:
        self.path = path
        name = ".".join(str(key) for key in path) or "the document"
        super().__init__(
            reason or f"{name} must be {expected}, got {short_repr(value)}{_number_advice(expected, value)}"
        )


def _number_advice(expected: str, value: object) -> str:
    """Explain a number that was read as text: YAML takes 1e-3 for text, and users put numbers in quotes."""
    if "number" not in expected or not isinstance(value, str):
        return ""
    try:
        number = float(value)
    except ValueError:
        return ""
    writable = "whole" not in expected and math.isfinite(number)
    return f", which is text: write {number!r}" if writable else ", which is text"


def parse_dataclass(document: Document, kind: type[T]) -> T:
    """Build a dataclass from a document.

    Args:
        document: the parsed file.
        kind: a dataclass whose fields are text, numbers, booleans, None, literals, registered names,
            tuples, mappings or dataclasses.

    Raises:
        DocumentError: an entry is missing, unknown, of another type, or out of range; names its line where known.
    """
    try:
        return _build(document.data, kind, ())  # type: ignore[no-any-return]
    except _Mismatch as error:
        raise DocumentError(str(error), line=document.line(error.path)) from error


def _build(value: Any, hint: Any, path: tuple[Key, ...]) -> Any:
    origin = get_origin(hint)
    if is_dataclass(hint):
        return _build_dataclass(value, hint, path)  # type: ignore[arg-type]
    if origin in (Union, types.UnionType):
        return _build_union(value, get_args(hint), path)
    if origin is Annotated:
        return _build_registered(value, hint, path)
    if origin is tuple:
        return _build_tuple(value, get_args(hint), path)
    if origin in (dict, Mapping):
        if not isinstance(value, dict):
            raise _Mismatch(path, "a mapping", value=value)
        return {key: _build(item, get_args(hint)[1], (*path, key)) for key, item in value.items()}
    if not _matches(value, hint):
        raise _Mismatch(path, _describe(hint), value=value)
    return float(value) if hint is float else value


def _build_dataclass(value: Any, kind: type, path: tuple[Key, ...]) -> Any:
    if not isinstance(value, dict):
        raise _Mismatch(path, "a mapping of settings", value=value)
    hints = _hints(kind)
    for key in value:
        if key not in hints:
            section = f" of {'.'.join(map(str, path))}" if path else ""
            close = difflib.get_close_matches(str(key), [field.name for field in fields(kind)], n=1)
            advice = f", did you mean {close[0]!r}?" if close else ""
            raise _Mismatch((*path, key), "", reason=f"{short_repr(key)} is no entry{section}{advice}")
    for field in fields(kind):
        if field.name not in value and field.default is MISSING and field.default_factory is MISSING:
            raise _Mismatch((*path, field.name), "", reason=f"{'.'.join(map(str, (*path, field.name)))} is missing")
    entries = {key: _build(item, hints[key], (*path, key)) for key, item in value.items()}
    # Files of earlier versions without a field do what those versions did, whatever its default is.
    given = {getattr(kind, "RENAMED_FIELDS", {}).get(key, key) for key in entries}
    absent = getattr(kind, "ABSENT_FIELDS", {})
    entries |= {name: item for name, item in absent.items() if name not in given}
    try:
        return kind(**entries)
    except ValueError as error:
        # Errors of configs begin with the name of the field.
        name = str(error).split(" ", 1)[0]
        raise _Mismatch((*path, name) if name in hints else path, "", reason=str(error).rstrip(".")) from error


@cache
def _hints(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    # Old names of options, which the dataclass itself translates.
    old_names = getattr(kind, "RENAMED_FIELDS", {})
    kinds = {old: change.kind for old, change in getattr(kind, "RENAMED_VALUES", {}).items()}
    return hints | {old: hints[new] for old, new in old_names.items()} | kinds


def _build_union(value: Any, hints: tuple[Any, ...], path: tuple[Key, ...]) -> Any:
    # In `int | float` an integer stays an integer.
    for hint in hints:
        if not is_dataclass(hint) and not get_origin(hint) and hint is not float and _matches(value, hint):
            return value
    nested = [hint for hint in hints if is_dataclass(hint) or get_origin(hint) or hint is float]
    failures = []
    for hint in nested:
        try:
            return _build(value, hint, path)
        except _Mismatch as error:
            failures.append(error)
    # An error inside a section names the wrong entry, which is more useful than the type of the section.
    deeper = [error for error in failures if error.path != path]
    raise deeper[0] if deeper else _Mismatch(path, " or ".join(_describe(hint) for hint in hints), value=value)


def _build_registered(value: Any, hint: Any, path: tuple[Key, ...]) -> str:
    """Return a name if the registry in the annotation has it."""
    names = get_args(hint)[1]
    if not isinstance(value, str) or value not in names:
        raise _Mismatch(path, f"one of {', '.join(names)}", value=value)
    return value


def _build_tuple(value: Any, hints: tuple[Any, ...], path: tuple[Key, ...]) -> tuple[Any, ...]:
    any_length = hints[-1] is Ellipsis
    if not isinstance(value, list) or (not any_length and len(value) != len(hints)):
        raise _Mismatch(path, "a list" if any_length else f"a list of {len(hints)}", value=value)
    item_hints = [hints[0]] * len(value) if any_length else hints
    pairs = zip(value, item_hints, strict=True)
    return tuple(_build(item, hint, (*path, index)) for index, (item, hint) in enumerate(pairs))


def _matches(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(hint))
    if hint in (None, type(None)):
        return value is None
    if isinstance(value, bool):
        return hint is bool
    if hint is float:
        return isinstance(value, int | float) and abs(value) <= sys.float_info.max  # neither infinite nor NaN
    if hint is int:
        return isinstance(value, int) and abs(value) < INT_LIMIT
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        return repr(choices[0]) if len(choices) == 1 else f"one of {', '.join(map(str, choices))}"
    names = {str: "text", float: "a number", int: "a whole number", bool: "true or false", type(None): "null"}
    return names.get(hint, "a list" if get_origin(hint) is tuple else "a mapping")

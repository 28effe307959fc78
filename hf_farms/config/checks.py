"""Checks of options and arguments where they enter; each error message is one sentence."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, is_dataclass
from functools import cache
from numbers import Real
from pathlib import Path
from types import NoneType
from typing import Any, TypeGuard, cast, get_args, get_type_hints

__all__ = [
    "Range",
    "check",
    "check_arguments",
    "check_choice",
    "check_fields",
    "check_ranges",
    "is_count",
    "is_number",
    "is_real",
    "is_seed",
    "is_word",
]

# Longer values would bury the sentence.
MAX_SHOWN = 200
NAMES = {bool: "True or False", str: "text", NoneType: "None"}
# Numbers have ranges, which are checked one by one.
NUMBERS = (int, float)


def check(ok: bool, name: str, constraint: str, value: object, remedy: str = "") -> None:
    """Raise for an invalid option: constraint, given value, remedy."""
    if not ok:
        raise ValueError(f"{name} must be {constraint}, got {_shown(value)}.{' ' + remedy if remedy else ''}")


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Refuse a name that is not among the choices: a registry, as it is now, or fixed names."""
    check(isinstance(value, str) and value in choices, name, f"one of {', '.join(choices)}", value)


@dataclass(frozen=True)
class Range:
    """The values that a numeric option may have.

    Attributes:
        holds: whether a value is one of them.
        constraint: for the error message.
        remedy: sentence after it.
    """

    holds: Callable[[object], bool]
    constraint: str
    remedy: str = ""


def check_ranges(config: object, ranges: Mapping[str, Range]) -> None:
    """Refuse a field of a config that is outside of its range."""
    for name, allowed in ranges.items():
        value = getattr(config, name)
        check(allowed.holds(value), name, allowed.constraint, value, allowed.remedy)


def is_count(value: object) -> bool:
    """Whether this is a positive integer."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether this is an integer or float."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_real(value: object) -> bool:
    """Whether this is a number of Python, numpy or another library; in files only those of Python can be written."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_seed(value: object) -> bool:
    """Whether this is a valid seed of a random number generator."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def is_word(value: object, word: str) -> bool:
    """Whether this is the word, where anything else may be given (an array compares with every word as an array)."""
    return isinstance(value, str) and value == word


def check_fields(config: object) -> None:
    """Refuse fields of a config that are not of their type: switches, texts and configs inside it.

    Numbers and names have checks of their own, because their sentences give the range or the choices.
    """
    for name, kinds in _plain_kinds(cast(Hashable, type(config))).items():
        _check_kinds(name, getattr(config, name), kinds)


def check_arguments(function: Callable[..., Any], **values: object) -> None:
    """Refuse arguments that are not of the types in the signature: switches, texts, paths, configs and reports.

    Args:
        function: that is called.
        values: its arguments by name; those that may be of other types are left alone.
    """
    kinds = _plain_kinds(cast(Hashable, function))
    for name, value in values.items():
        if name in kinds:
            _check_kinds(name, value, kinds[name])


@cache
def _plain_kinds(annotated: Hashable) -> dict[str, tuple[type, ...]]:
    """Return the allowed classes by name, for annotations that are classes or unions of classes."""
    hints = {name: get_args(hint) or (hint,) for name, hint in get_type_hints(cast(Any, annotated)).items()}
    return {name: kinds for name, kinds in hints.items() if all(_is_plain(kind) for kind in kinds)}


def _is_plain(kind: Any) -> bool:
    return isinstance(kind, type) and kind not in NUMBERS and not getattr(kind, "_is_protocol", False)


def _check_kinds(name: str, value: object, kinds: tuple[type, ...]) -> None:
    names = [NAMES.get(kind) or f"a {kind.__name__}" for kind in kinds if kind is not Path]
    if Path in kinds:
        names = ["a path", *(text for text in names if text != NAMES[str])]
    config = next((kind for kind in kinds if is_dataclass(kind)), None)
    remedy = f"Write {config.__name__}(...)." if config and isinstance(value, Mapping) else ""
    check(isinstance(value, kinds), name, " or ".join(names), value, remedy)


def _shown(value: object) -> str:
    """Format a value, or only its class if it is long."""
    text = repr(value)
    if isinstance(value, str):
        return text if len(text) <= MAX_SHOWN else f"{value[:MAX_SHOWN]!r}..."
    return text if len(text) <= MAX_SHOWN and "\n" not in text else f"an object of class {type(value).__name__}"

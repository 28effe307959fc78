"""Options with a new name, whose old one still works with a warning, and options that earlier versions did not have."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from typing import Any, TypeVar, cast, get_type_hints

__all__ = [
    "NewValue",
    "absent_before",
    "absent_values",
    "current_name",
    "current_names",
    "renamed",
    "stack_level",
]

T = TypeVar("T")
# Old name -> new name, on the dataclass; readers of files look it up, as they know no configs.
ATTRIBUTE = "RENAMED_FIELDS"
# Old name -> NewValue, of those whose values changed too.
VALUES = "RENAMED_VALUES"
# Field that earlier versions did not have -> value that does what they did.
ABSENT = "ABSENT_FIELDS"


@dataclass(frozen=True, kw_only=True)
class NewValue:
    """A field whose values changed with its name.

    Attributes:
        name: new name.
        kind: type of the old values.
        new: returns the new value for the old one, given all options by name.
        old: returns the old value for the new one.
    """

    name: str
    kind: type
    new: Callable[[Any, Mapping[str, Any]], Any]
    old: Callable[[Any], Any]


def renamed(**changes: str | NewValue) -> Callable[[type[T]], type[T]]:
    """Keep old names of a dataclass's fields as arguments and attributes; goes above `@dataclass`.

    The old names also work in `dataclasses.replace`, in pickles, and as keys of files.

    Args:
        changes: old name -> new name, or the new name with the new values.
    """
    names = {old: change if isinstance(change, str) else change.name for old, change in changes.items()}
    values = {old: change for old, change in changes.items() if isinstance(change, NewValue)}

    def decorate(kind: type[T]) -> type[T]:
        original: Callable[..., None] = kind.__init__

        @wraps(original)
        def initialize(self: T, *args: Any, **options: Any) -> None:
            original(self, *args, **_translate(kind, options, _copied(kind)))

        def set_state(self: T, state: dict[str, Any]) -> None:
            new = {name: values[name].new(value, state) if name in values else value for name, value in state.items()}
            self.__dict__.update({names.get(name, name): value for name, value in new.items()})

        setattr(kind, ATTRIBUTE, names)
        setattr(kind, VALUES, values)
        for name, method in {"__init__": initialize, "__setstate__": set_state}.items():
            setattr(kind, name, method)
        for old, new in names.items():
            setattr(kind, old, _alias(kind, old, new))
        return kind

    return decorate


def absent_before(**values: Any) -> Callable[[type[T]], type[T]]:
    """Read files and pickles of earlier versions without a field as what they did, whatever its default is.

    It goes above `@renamed`, if there is one.

    Args:
        values: field -> value that does what versions without the field did.
    """

    def decorate(kind: type[T]) -> type[T]:
        original: Callable[..., None] = vars(kind).get("__setstate__", _set_state)

        def set_state(self: T, state: dict[str, Any]) -> None:
            original(self, state)
            self.__dict__.update({name: value for name, value in values.items() if name not in self.__dict__})

        setattr(kind, ABSENT, values)
        setattr(kind, "__setstate__", set_state)  # noqa: B010 - mypy knows no such method
        return kind

    return decorate


def _set_state(self: object, state: dict[str, Any]) -> None:
    self.__dict__.update(state)


def absent_values(kind: type) -> dict[str, Any]:
    """Return the values of all fields that earlier versions did not have, by dotted name."""
    values = dict(getattr(kind, ABSENT, {}))
    hints = get_type_hints(kind)
    for field in fields(kind):
        if is_dataclass(hints[field.name]):
            inside = absent_values(cast(type, hints[field.name]))
            values |= {f"{field.name}.{name}": value for name, value in inside.items()}
    return values


def current_names(kind: type, options: dict[str, Any]) -> dict[str, Any]:
    """Translate old names among the options of a dataclass, each with a warning.

    Raises:
        ValueError: both names of one option are given.
    """
    return _translate(kind, options, None)


def current_name(kind: type, key: str) -> str:
    """Translate a dotted key, such as `prune.farms.fit`, whose first part is a field of this dataclass."""
    first, _, rest = key.partition(".")
    first = getattr(kind, ATTRIBUTE, {}).get(first, first)
    inside = get_type_hints(kind).get(first)
    if rest and inside is not None and is_dataclass(inside):
        rest = current_name(cast(type, inside), rest)
    return f"{first}.{rest}" if rest else first


def _translate(kind: type, options: dict[str, Any], copied: object | None) -> dict[str, Any]:
    names: dict[str, str] = getattr(kind, ATTRIBUTE, {})
    translated = dict(options)
    for old in names.keys() & options.keys():
        new = names[old]
        if new in options and (copied is None or options[new] is not getattr(copied, new)):
            raise ValueError(f"{old} must be left out with {new}, its new name, got both. Remove {old}.")
        value = translated.pop(old)
        translated[new] = value
        if (change := getattr(kind, VALUES, {}).get(old)) is None:
            _warn(kind, old, new)
        else:
            translated[new] = change.new(value, options)
            _warn(kind, f"{old}={value!r}", f"{new}={translated[new]!r}")
    return translated


def _copied(kind: type) -> object | None:
    """Return the object that `dataclasses.replace` copies; None for another caller.

    It passes on every field that is not replaced, so that the new name is always present in addition to the old one.
    """
    frame = sys._getframe(2)
    if frame.f_globals.get("__name__") != "dataclasses":
        return None
    # The name of the argument depends on the version of Python.
    copied: object = frame.f_locals.get("obj", frame.f_locals.get("self"))
    return copied if isinstance(copied, kind) else None


def _alias(kind: type, old: str, new: str) -> property:
    def read(self: object) -> Any:
        _warn(kind, old, new)
        value = getattr(self, new)
        change = getattr(kind, VALUES, {}).get(old)
        return value if change is None else change.old(value)

    return property(read, doc=f"Old name of `{new}`.")


def _warn(kind: type, old: str, new: str) -> None:
    before, now = (text.partition("=")[0] for text in (old, new))
    message = f"{kind.__name__}.{before} is named {now} now. Replace {old} by {new}; the old name will be removed."
    warnings.warn(message, DeprecationWarning, stacklevel=stack_level())


def stack_level() -> int:
    """Return the `stacklevel` of a warning of the caller that shows the first line outside of this package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and _is_ours(frame.f_globals.get("__name__", "")):
        level, frame = level + 1, frame.f_back
    return level


def _is_ours(module: str) -> bool:
    return module == "dataclasses" or module.partition(".")[0] == "hf_farms"

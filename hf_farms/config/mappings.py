"""Conversion of mappings to configs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import TypeVar, get_type_hints

from hf_farms.config.checks import check
from hf_farms.config.renamed import current_names

__all__ = ["as_config"]

T = TypeVar("T")


def as_config(kind: type[T], given: object, *, argument: str = "config") -> T:
    """Return a config that is given as it is, as a mapping of its options, or as None for the defaults.

    Args:
        kind: dataclass of the config.
        given: options of other configs inside may be mappings too.
        argument: name for errors.

    Raises:
        ValueError: another type, an option that does not exist, or a value out of range.
    """
    if given is None:
        return kind()
    if isinstance(given, kind):
        return given
    check(isinstance(given, Mapping), argument, f"a {kind.__name__} or a mapping of its options", given)
    assert isinstance(given, Mapping)
    options = current_names(kind, dict(given))
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for name in options:
        close = get_close_matches(str(name), names, n=1)
        remedy = f"Did you mean {close[0]!r}?" if close else f"It has {', '.join(names)}."
        check(name in names, argument, f"a mapping of options of {kind.__name__}", name, remedy)
    return kind(
        **{
            name: as_config(hints[name], value, argument=name)
            if is_dataclass(hints[name]) and isinstance(value, Mapping)
            else value
            for name, value in options.items()
        }
    )

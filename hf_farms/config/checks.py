"""What the options of all configs are checked with."""

from __future__ import annotations

from collections.abc import Collection

__all__ = ["check", "check_choice", "is_count", "is_number"]


def check(ok: bool, name: str, constraint: str, value: object, remedy: str = "") -> None:
    """Refuse an option that is out of range: what must hold, what was given, what to do."""
    if not ok:
        raise ValueError(f"{name} must be {constraint}, got {value!r}.{' ' + remedy if remedy else ''}")


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Refuse a name that is not among the choices: a registry, as it is now, or fixed names."""
    check(isinstance(value, str) and value in choices, name, f"one of {', '.join(choices)}", value)


def is_count(value: object) -> bool:
    """Whether this is a positive integer."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_number(value: object) -> bool:
    """Whether this is an integer or float."""
    return isinstance(value, int | float) and not isinstance(value, bool)

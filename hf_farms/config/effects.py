"""Warn of fields of configs and arguments that have no effect, by one table of rules (`effect_rules.py`).

A field has no effect where one of its rules does not apply. Each function and callback that takes a config calls
`warn_unused` once, before its work. The command line says with `given_fields` which options the user wrote.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from operator import attrgetter
from typing import Any, cast

from hf_farms.config.effect_inputs import Inputs
from hf_farms.config.effect_rules import RULES, Rule
from hf_farms.config.renamed import stack_level
from hf_farms.errors import NoEffectWarning

__all__ = ["given_fields", "has_warned", "unused_fields", "warn_unused"]

# Fields of configs that are configs themselves, with rules of their own.
NESTED = ("spectra",)

# What the user wrote, by dotted name; None: fields count that differ from their default. Empty inside of a function
# that has warned already.
_given: ContextVar[Collection[str] | None] = ContextVar("given", default=None)


@contextmanager
def given_fields(names: Collection[str] | None) -> Iterator[None]:
    """Warn only of these fields inside: `()` inside of a function that has checked its config.

    Args:
        names: dotted names as in messages, such as "calibration.column"; None: fields that differ from their default.
    """
    token = _given.set(names)
    try:
        yield
    finally:
        _given.reset(token)


def has_warned() -> bool:
    """Whether this runs inside of a function that has checked its config."""
    return _given.get() == ()


def unused_fields(config: object, inputs: Inputs | None = None, *, rules: Collection[Rule] = RULES) -> dict[str, str]:
    """Return the fields that have no effect, each with the reason.

    Args:
        config: a config, or arguments of a function.
        inputs: model and text.
        rules: the table.
    """
    inputs = inputs or Inputs()
    unused: dict[str, str] = {}
    for rule in rules:
        if isinstance(config, rule.kind) and not rule.applies(config, inputs):
            unused |= {field: rule.condition(config) for field in rule.fields if field not in unused}
    for name in NESTED:
        if name not in unused and (inner := getattr(config, name, None)) is not None:
            inside = unused_fields(inner, inputs, rules=rules)
            unused = {f"{name}.{field}": condition for field, condition in inside.items()} | unused
    return unused


def warn_unused(
    config: object,
    inputs: Inputs | None = None,
    *,
    prefix: str = "",
    given: Collection[str] | None = None,
    rules: Collection[Rule] = RULES,
) -> None:
    """Warn of fields that the user set and that have no effect.

    Args:
        config: a config, or arguments of a function.
        inputs: model and text.
        prefix: name of the argument with a dot, in front of the names of its fields.
        given: fields that the user set; None: those that differ from their default.
        rules: the table.
    """
    names, default = _given.get(), None
    if names is None and given is not None:
        names = {prefix + name for name in given}
    if names is None:
        default = cast(Any, type(config))()
    for field, condition in unused_fields(config, inputs, rules=rules).items():
        value = attrgetter(field)
        if (prefix + field in names) if names is not None else (value(_settled(config)) != value(_settled(default))):
            warnings.warn(f"`{prefix}{field}` has no effect: {condition}", NoEffectWarning, stacklevel=stack_level())


def _settled(config: Any) -> Any:
    """Return the config with numbers in place of None: files hold the number of a default."""
    return config.settled() if hasattr(config, "settled") else config

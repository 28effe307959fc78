"""Errors of typer about a command line that it cannot parse, in the form of ours: option, value, remedy."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from hf_farms.privacy.masking import mask_secrets

__all__ = ["explain"]

# Start of the type of an error of pydantic, which parses values for typer -> what the option takes.
EXPECTED = {"int": "a whole number", "float": "a number"}


def explain(error: Any) -> None:
    """Change the message of an error of typer: with the value, without wrong suggestions, secrets masked."""
    if (sentence := _wrong_value(error)) is not None:
        # Without the parameter, typer adds nothing but "Invalid value: ".
        error.message, error.param, error.param_hint = sentence, None, None
    if getattr(error, "possibilities", None):
        error.possibilities = _similar(error)
    error.message = mask_secrets(error.message)


def _wrong_value(error: Any) -> str | None:
    """Return the sentence for a value that is no number; None for another error."""
    details = getattr(error.__cause__, "errors", None)
    option = max(getattr(getattr(error, "param", None), "opts", ()), key=len, default=None)
    if not callable(details) or option is None:
        return None
    first = details()[0]
    expected = next((text for kind, text in EXPECTED.items() if first["type"].startswith(f"{kind}_")), None)
    return f"{option} must be {expected}, got {first['input']!r}." if expected is not None else None


def _similar(error: Any) -> list[str]:
    """Return the options that are like the given one; typer counts the dashes too, which all of them have."""
    context = getattr(error, "ctx", None)
    options = [option for parameter in context.command.params for option in parameter.opts] if context else []
    names = {option.lstrip("-"): option for option in (*options, *error.possibilities)}
    return [names[name] for name in get_close_matches(error.option_name.lstrip("-"), names)]

"""Errors and warnings of hf-farms.

    Exception
    ├── HfFarmsError                 an expected error about a model, a file or the Hub
    │   ├── ModelError               the model cannot be used: not found, no weights, no blocks, NaN
    │   ├── DataError                calibration or evaluation text: missing, too short, unreadable
    │   ├── OutputError              the output folder: written by something else, not writable, disk full
    │   └── HubError                 the Hub refused or could not be reached
    └── ValueError                   an argument outside its range (raised by configs and pure functions)
        └── ArgumentError            the same, raised by a workflow before any work

Warning:
    └── UserWarning
        └── HfFarmsWarning           the result is correct, but possibly not what you expect
            └── NoEffectWarning      a setting has no effect

A message is one sentence with the requirement, the value found and a remedy. Secrets in it are masked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hf_farms.privacy.masking import mask_secrets

__all__ = [
    "ArgumentError",
    "DataError",
    "HfFarmsError",
    "HfFarmsWarning",
    "HubError",
    "ModelError",
    "NoEffectWarning",
    "OutputError",
    "argument_errors",
]


class HfFarmsError(Exception):
    """Base class of all errors about models, files and the Hub.

    Args:
        message: one sentence: the requirement and the value found.
        hint: the command or the change that repairs it; optional.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(mask_secrets(message))
        self.hint = mask_secrets(hint) if hint is not None else None


class ModelError(HfFarmsError):
    """The model cannot be analyzed or pruned."""


class DataError(HfFarmsError):
    """Calibration or evaluation text is missing, too short or unreadable."""


class OutputError(HfFarmsError):
    """The output folder cannot be used."""


class HubError(HfFarmsError):
    """The Hub refused a request or could not be reached."""


class ArgumentError(ValueError):
    """An argument is out of range or contradicts another one, whatever the model and the files are."""


@contextmanager
def argument_errors() -> Iterator[None]:
    """Raise each ValueError as an `ArgumentError`: for checks of arguments, and nothing else.

    Raises:
        ArgumentError: with the same message.
    """
    try:
        yield
    except ArgumentError:
        raise
    except ValueError as error:
        raise ArgumentError(*error.args) from error


class HfFarmsWarning(UserWarning):
    """The result is correct, but possibly not what you expect."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(mask_secrets(item) if isinstance(item, str) else item for item in args))


class NoEffectWarning(HfFarmsWarning):
    """A setting has no effect."""

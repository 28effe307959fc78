"""What can go wrong, as one tree.

    Exception
    ├── HfFarmsError                 everything raised on purpose about a model, a file or the Hub
    │   ├── ModelError               the model cannot be used: not found, no weights, no blocks, NaN
    │   ├── DataError                calibration or evaluation text: missing, too short, unreadable
    │   ├── OutputError              the output folder: not ours, not writable, disk full
    │   └── HubError                 the Hub refused or could not be reached
    └── ValueError                   an argument outside its range (raised by configs and pure functions)

Warning:
    └── UserWarning
        └── HfFarmsWarning           the result is right, but not what one might assume
            └── NoEffectWarning      what was asked for changes nothing

Every message is one sentence that says what must hold, what was found, and what to do; secrets in it are masked.
"""

from __future__ import annotations

from hf_farms.privacy.masking import mask_secrets

__all__ = ["DataError", "HfFarmsError", "HfFarmsWarning", "HubError", "ModelError", "NoEffectWarning", "OutputError"]


class HfFarmsError(Exception):
    """Base of all errors about models, files and the Hub.

    Args:
        message: one sentence: what is wrong, and what was found.
        hint: optional; the command or the change that repairs it.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(mask_secrets(message))
        self.hint = mask_secrets(hint) if hint is not None else None


class ModelError(HfFarmsError):
    """The model cannot be analysed or pruned."""


class DataError(HfFarmsError):
    """Calibration or evaluation text is missing, too short or unreadable."""


class OutputError(HfFarmsError):
    """The output folder cannot be used."""


class HubError(HfFarmsError):
    """The Hub refused a request or could not be reached."""


class HfFarmsWarning(UserWarning):
    """The result is right, but not what one might assume."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(mask_secrets(item) if isinstance(item, str) else item for item in args))


class NoEffectWarning(HfFarmsWarning):
    """What was asked for changes nothing."""

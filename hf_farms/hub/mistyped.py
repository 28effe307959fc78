"""Say that a name without a slash, which was taken for a repository, may be a missing folder or a mistyped name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from hf_farms.errors import HfFarmsError
from hf_farms.hub.errors import NOT_FOUND, NOT_HERE, NOT_REACHED

__all__ = ["did_you_mean", "name_other_places"]


def name_other_places(error: HfFarmsError, what: str, *, packaged: Iterable[str], kind: str = "folder") -> HfFarmsError:
    """Add to an error of the Hub where else a name was looked for; other errors are unchanged.

    Args:
        error: as explained to the user.
        what: the name; one with a slash can only be meant for the Hub, or names a folder in its hint.
        packaged: names inside the package.
        kind: what the name may be on this machine, "folder" or "file".

    Returns:
        An error of the same class, whose hint names a close name inside the package.
    """
    unreached = f"{NOT_REACHED} (" in str(error)
    if "/" in what or not (unreached or NOT_FOUND in str(error) or NOT_HERE in str(error)):
        return error
    names = tuple(packaged)
    inside = f" and nothing inside the package ({', '.join(names)})" if names else ""
    message = f"{what!r} is no {kind} here{inside}; {error}" if unreached else str(error)
    return type(error)(message, hint=did_you_mean(what, names) + (error.hint or ""))


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return the beginning of a hint that names what a mistyped name is closest to; "": it resembles nothing."""
    close = difflib.get_close_matches(name.lower(), tuple(names), n=1)
    return f"Did you mean {close[0]!r}? " if close else ""

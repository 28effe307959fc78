"""What may be published of names and texts that a user gave: no home folder, no user name in a path, no secret.

A path is shown relative to the working folder, as `./data/text.txt`, or by its last part, as `./text.txt`, where it
lies elsewhere. With `./` it can be taken neither for a repository on the Hub nor for a dataset.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from hf_farms.privacy.masking import mask_secrets

__all__ = [
    "is_local",
    "local_path",
    "published",
    "published_argument",
    "published_path",
    "published_text",
    "same_place",
]

# Names that stand for something else than a file of that name.
RESERVED = frozenset({"demo", "speeches", "self", "none"})
# Fields of reports, recipes and configs that hold the name of a model or a file.
NAMES = frozenset(
    {
        *("model", "base", "source", "base_model", "first", "second", "name_or_path", "_name_or_path"),
        *("base_model_name_or_path", "best_model_checkpoint", "output_dir", "logging_dir"),
    }
)
LOCAL = re.compile(r"([/\\~]|\.{1,2}([/\\]|$)|[A-Za-z]:[\\/]|file:)")
WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
FILE_URL = re.compile(r"""file:(?://(?:localhost)?(?=/))?(/?[^\s'"<>)\]]*)""")
# In a sentence: up to a space or a quotation mark, or up to the quotation mark that fits.
ABSOLUTE = re.compile(r"""(?<=')/[^'\n]+(?=')|(?<=")/[^"\n]+(?=")|(?<![\w:/.~%-])~?/[^\s'"`,:;()\[\]{}<>|]+""")
# The folder of a home that says of whom it is.
HOMES = re.compile(r"(?:/home|/Users|[A-Za-z]:\\Users)[\\/][^\s\\/'\"`,;()\[\]{}<>|]+", re.IGNORECASE)


def is_local(name: str) -> bool:
    """Whether a name is that of a file or folder here, and no id of the Hub."""
    if name in RESERVED or not name:
        return False
    try:
        return bool(LOCAL.match(name)) or Path(name).exists()
    except (OSError, ValueError):  # too long, or with a character that no path has
        return False


def local_path(name: str) -> str:
    """The absolute path of a name that is local."""
    if name.startswith("file:"):
        found = FILE_URL.match(name)
        name = unquote(found[1]) if found else name
    return os.path.abspath(os.path.expanduser(name))


def same_place(first: str, second: str) -> bool:
    """Whether two names, one of which may have been published, mean the same file, model or dataset."""
    if first == second:
        return True
    if is_local(first) and is_local(second) and all(os.path.isabs(os.path.expanduser(n)) for n in (first, second)):
        return os.path.realpath(local_path(first)) == os.path.realpath(local_path(second))
    return published_path(first) == published_path(second)


def published_path(name: str) -> str:
    """The name of a model or a file, as it may be published; ids of the Hub as they are."""
    return _published_place(name) if is_local(name) else published_text(name)


def _published_place(name: str) -> str:
    if WINDOWS.match(name) and os.sep == "/":
        return mask_secrets("./" + re.split(r"[\\/]", name.rstrip("\\/"))[-1])
    path = local_path(name)
    shown = _last_part(path)
    inside = _relative(path)
    if inside is not None and not _is_private(inside, path):
        shown = inside
    return mask_secrets(shown if shown == "." else f"./{shown}")


def _relative(path: str) -> str | None:
    """The path below the working folder; None: it is elsewhere."""
    for here in dict.fromkeys((_cwd(), os.path.realpath(_cwd()))):
        for there in dict.fromkeys((path, os.path.realpath(path))):
            if there == here:
                return "."
            if there.startswith(here.rstrip(os.sep) + os.sep):
                return there[len(here.rstrip(os.sep)) + 1 :].replace(os.sep, "/")
    return None


def _cwd() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return os.sep


def _last_part(path: str) -> str:
    """The name of a file or folder; of a home folder and what it lies in, nothing."""
    shown = re.split(r"[\\/]", path.rstrip("\\/"))[-1]
    above = [home for home in _homes() if f"{home}{os.sep}".startswith(path.rstrip(os.sep) + os.sep)]
    return "model" if above else shown


def _is_private(inside: str, path: str) -> bool:
    """Whether the way from the working folder leads through a home folder, or names the user."""
    folders = inside.split("/")[:-1]
    if any(_words_of(folder) & _users() for folder in folders):
        return True
    if (somebody := HOMES.match(path)) and not _is_below(_cwd(), somebody[0]):
        return True
    return any(_is_below(path, home) and not _is_below(_cwd(), home) for home in _homes())


def _is_below(path: str, folder: str) -> bool:
    return f"{os.path.realpath(path)}{os.sep}".startswith(f"{os.path.realpath(folder)}{os.sep}")


def _words_of(text: str) -> set[str]:
    return {text.lower(), *re.split(r"[^\w]|_", text.lower())}


def _homes() -> list[str]:
    """Home folders of this user, as they are written and as they are, the longest first."""
    found = {os.environ.get("HOME", ""), os.environ.get("USERPROFILE", ""), os.path.expanduser("~")}
    found |= {_account()[1]}
    found |= {os.path.realpath(home) for home in found if home}
    return sorted((home.rstrip(os.sep) for home in found if len(home) > 1), key=len, reverse=True)


def _users() -> set[str]:
    """Names of this user."""
    found = {os.environ.get(name, "") for name in ("USER", "LOGNAME", "LNAME", "USERNAME", "SUDO_USER")}
    found |= {_account()[0], *(os.path.basename(home) for home in _homes())}
    return {name.lower() for name in found if name and name != "~"}


def _account() -> tuple[str, str]:
    """Name and home folder by the system, whatever the environment says."""
    try:
        import pwd

        entry = pwd.getpwuid(os.getuid())
    except (ImportError, KeyError, AttributeError):  # Windows, or a container whose user has no name
        return "", ""
    return entry.pw_name, entry.pw_dir


def published_text(text: str) -> str:
    """Text in which paths may stand, as it may be published."""
    text = mask_secrets(text)
    if not re.search(r"[/\\~]", text):
        return text
    text = FILE_URL.sub(lambda found: published_path(found[0]) if "/" in found[0] else found[0], text)
    text = ABSOLUTE.sub(lambda found: _shown_in_text(found[0]), text)
    for home in _homes():
        text = re.sub(rf"{re.escape(home)}(?![\w-])", "~", text)
    return text


def _shown_in_text(path: str) -> str:
    """A path in a sentence; what only looks like one (`/m/01g317`) stays."""
    bare = path.rstrip(".:!?")
    end = path[len(bare) :]
    whole = local_path(bare) if bare else os.sep
    folders = whole.split(os.sep)[1:-1]
    ours = any(_is_below(whole, home) for home in _homes()) or (_is_below(whole, _cwd()) and _cwd() != os.sep)
    known = bool(folders) and (os.path.exists(whole) or os.path.isdir(os.path.dirname(whole)))
    named = any(folder.lower() in _users() for folder in folders) or bool(HOMES.match(whole))
    return f"{published_path(bare)}{end}" if ours or known or named else path


def published_argument(argument: str) -> str:
    """An argument of a command line: a path, `--option=path`, `-opath`, or a text."""
    option, equals, value = argument.partition("=")
    if equals and re.fullmatch(r"--?[\w-]+", option):
        return f"{option}={published_argument(value)}"
    if found := re.fullmatch(r"(-[A-Za-z])([/~.].*|[^-].*/.*)", argument):
        return f"{found[1]}{published_argument(found[2])}"
    if argument.startswith("-"):
        return published_text(argument)
    if LOCAL.match(argument) or _leads_through_home(argument):
        return _published_place(argument)
    return published_text(argument)


def _leads_through_home(name: str) -> bool:
    """Whether a relative path, which may be an output that is not there yet, leads through a private folder."""
    path = local_path(name)
    inside = _relative(path) if "/" in name and os.path.isdir(os.path.dirname(path)) else None
    return inside is not None and _is_private(inside, path)


def published(value: Any, name: str = "") -> Any:
    """Everything in a structure of mappings, lists and text, as it may be published.

    Args:
        value: what JSON or YAML can hold; it is not changed.
        name: of the field that holds it.
    """
    if isinstance(value, str):
        return published_path(value) if name in NAMES else published_text(value)
    if isinstance(value, Mapping):
        keys = [published_text(key) if isinstance(key, str) else key for key in value]
        return dict(zip(keys, (published(item, str(key)) for key, item in value.items()), strict=True))
    if isinstance(value, Iterable) and not isinstance(value, bytes):
        found = [published(item, name) for item in value]
        return tuple(found) if isinstance(value, tuple) else found
    return value

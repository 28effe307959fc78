"""Clean names and texts for publication: no home folder, no user name in a path, no secret.

A path inside the working folder becomes relative to it (`./data/text.txt`); any other path is cut to its last part
(`./text.txt`). The leading `./` tells it from a repository or dataset on the Hub. Models inside the package have the
name that every command takes (`demo`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from functools import cache
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

# Names with a special meaning, even if a file of that name exists.
RESERVED = frozenset({"demo", "demo-healthy", "speeches", "self", "none"})
# Models inside the package, as in `hf_farms.demo`, which stands above this room.
PACKAGED = {"model": "demo", "model_healthy": "demo-healthy"}
PACKAGED_IN = Path(__file__).parents[1] / "demo"
# Fields of reports, recipes and configs whose value is the name of a model or a file.
NAME_FIELDS = frozenset(
    {
        *("model", "base", "source", "base_model", "first", "second", "name_or_path", "_name_or_path"),
        *("base_model_name_or_path", "best_model_checkpoint", "output_dir", "logging_dir"),
    }
)
LOCAL = re.compile(r"([/\\~]|\.{1,2}([/\\]|$)|[A-Za-z]:[\\/]|file:)")
WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
FILE_URL = re.compile(r"""file:(?://(?:localhost)?(?=/))?(/?[^\s'"<>)\]]*)""")
# In a sentence: up to a space or a quotation mark; a quoted path up to the closing quotation mark.
ABSOLUTE = re.compile(r"""(?<=')/[^'\n]+(?=')|(?<=")/[^"\n]+(?=")|(?<![\w:/.~%-])~?/[^\s'"`,:;()\[\]{}<>|]+""")
# A home folder, which names its user.
HOMES = re.compile(r"(?:/home|/Users|[A-Za-z]:\\Users)[\\/][^\s\\/'\"`,;()\[\]{}<>|]+", re.IGNORECASE)


def is_local(name: str) -> bool:
    """Return whether a name is a local file or folder, and not an id of the Hub."""
    if name in RESERVED or not name:
        return False
    try:
        return bool(LOCAL.match(name)) or Path(name).exists()
    except (OSError, ValueError):  # too long, or a character that no path can have
        return False


def local_path(name: str) -> str:
    """Return the absolute path of a local name, which may be a `file:` URL."""
    if name.startswith("file:"):
        match = FILE_URL.match(name)
        name = unquote(match[1]) if match else name
    return os.path.abspath(os.path.expanduser(name))


def same_place(first: str, second: str) -> bool:
    """Return whether two names mean the same file, model or dataset; one of them may be a published name."""
    if first == second:
        return True
    if is_local(first) and is_local(second) and all(os.path.isabs(os.path.expanduser(n)) for n in (first, second)):
        return os.path.realpath(local_path(first)) == os.path.realpath(local_path(second))
    return published_path(first) == published_path(second)


def published_path(name: str) -> str:
    """Clean the name of a model or file for publication; ids of the Hub are unchanged."""
    return _published_local(name) if is_local(name) else published_text(name)


def _published_local(name: str) -> str:
    if WINDOWS.match(name) and os.sep == "/":
        return mask_secrets("./" + re.split(r"[\\/]", name.rstrip("\\/"))[-1])
    path = local_path(name)
    if (packaged := _packaged(path)) is not None:
        return packaged
    public = _last_part(path)
    relative = _relative(path)
    if relative is not None and not _is_private(relative, path):
        public = relative
    return mask_secrets(public if public == "." else f"./{public}")


def _packaged(path: str) -> str | None:
    """Return the name of a model inside the package, given its folder; None: another folder."""
    parent, folder = os.path.split(path)
    if folder not in PACKAGED or os.path.realpath(parent) != os.path.realpath(PACKAGED_IN):
        return None
    return PACKAGED[folder]


def _relative(path: str) -> str | None:
    """Return a path relative to the working folder; None: it is outside."""
    for cwd in dict.fromkeys((_cwd(), os.path.realpath(_cwd()))):
        for candidate in dict.fromkeys((path, os.path.realpath(path))):
            if candidate == cwd:
                return "."
            if candidate.startswith(cwd.rstrip(os.sep) + os.sep):
                return candidate[len(cwd.rstrip(os.sep)) + 1 :].replace(os.sep, "/")
    return None


def _cwd() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return os.sep


def _last_part(path: str) -> str:
    """Return the name of a file or folder; "model" for a home folder and its parents."""
    name = re.split(r"[\\/]", path.rstrip("\\/"))[-1]
    contains_home = any(f"{home}{os.sep}".startswith(path.rstrip(os.sep) + os.sep) for home in _homes())
    return "model" if contains_home else name


def _is_private(relative: str, path: str) -> bool:
    """Return whether a path below the working folder leads through a home folder or names the user."""
    folders = relative.split("/")[:-1]
    if any(_words(folder) & _users() for folder in folders):
        return True
    if (home := HOMES.match(path)) and not _is_below(_cwd(), home[0]):
        return True
    return any(_is_below(path, folder) and not _is_below(_cwd(), folder) for folder in _homes())


def _is_below(path: str, folder: str) -> bool:
    return f"{os.path.realpath(path)}{os.sep}".startswith(f"{os.path.realpath(folder)}{os.sep}")


def _words(text: str) -> set[str]:
    return {text.lower(), *re.split(r"[^\w]|_", text.lower())}


def _homes() -> list[str]:
    """Return the home folders of this user, also with links resolved, the longest first."""
    homes = {os.environ.get("HOME", ""), os.environ.get("USERPROFILE", ""), os.path.expanduser("~")}
    homes |= {_account()[1]}
    homes |= {os.path.realpath(home) for home in homes if home}
    return sorted((home.rstrip(os.sep) for home in homes if len(home) > 1), key=len, reverse=True)


def _users() -> set[str]:
    """Return the names of this user, in lower case."""
    names = {os.environ.get(name, "") for name in ("USER", "LOGNAME", "LNAME", "USERNAME", "SUDO_USER")}
    names |= {_account()[0], *(os.path.basename(home) for home in _homes())}
    return {name.lower() for name in names if name and name != "~"}


def _account() -> tuple[str, str]:
    """Return user name and home folder from the system's user database, which no environment variable changes."""
    try:
        import pwd

        entry = pwd.getpwuid(os.getuid())
    except (ImportError, KeyError, AttributeError):  # Windows, or a container whose user has no name
        return "", ""
    return entry.pw_name, entry.pw_dir


def published_text(text: str) -> str:
    """Clean a text for publication: shorten paths in it and mask secrets."""
    text = mask_secrets(text)
    if not re.search(r"[/\\~]", text):
        return text
    text = FILE_URL.sub(lambda match: published_path(match[0]) if "/" in match[0] else match[0], text)
    text = ABSOLUTE.sub(lambda match: _published_path_in_text(match[0]), text)
    for home in _homes():
        text = re.sub(rf"{re.escape(home)}(?![\w-])", "~", text)
    return text


def _published_path_in_text(path: str) -> str:
    """Shorten a path in a sentence; strings that only look like a path (`/m/01g317`) are unchanged."""
    bare = path.rstrip(".:!?")
    punctuation = path[len(bare) :]
    absolute = local_path(bare) if bare else os.sep
    folders = absolute.split(os.sep)[1:-1]
    in_home = any(_is_below(absolute, home) for home in _homes())
    in_cwd = _is_below(absolute, _cwd()) and _cwd() != os.sep
    exists = bool(folders) and (os.path.exists(absolute) or os.path.isdir(os.path.dirname(absolute)))
    names_user = any(folder.lower() in _users() for folder in folders) or bool(HOMES.match(absolute))
    return f"{published_path(bare)}{punctuation}" if in_home or in_cwd or exists or names_user else path


def published_argument(argument: str) -> str:
    """Clean an argument of a command line for publication: a path, `--option=path`, `-opath`, or a text."""
    option, equals, value = argument.partition("=")
    if equals and re.fullmatch(r"--?[\w-]+", option):
        return f"{option}={published_argument(value)}"
    if match := re.fullmatch(r"(-[A-Za-z])([/~.].*|[^-].*/.*)", argument):
        return f"{match[1]}{published_argument(match[2])}"
    if argument.startswith("-"):
        return published_text(argument)
    if LOCAL.match(argument) or _leads_through_home(argument):
        return _published_local(argument)
    return published_text(argument)


def _leads_through_home(name: str) -> bool:
    """Return whether a relative path, which need not exist yet, leads through a private folder."""
    path = local_path(name)
    relative = _relative(path) if "/" in name and os.path.isdir(os.path.dirname(path)) else None
    return relative is not None and _is_private(relative, path)


def published(value: Any, name: str = "") -> Any:
    """Clean all strings in a structure of mappings and lists for publication, and return a copy.

    Args:
        value: data of JSON or YAML; not modified.
        name: the field of the value.
    """
    # Reports repeat few strings, most of them keys, thousands of times.
    path, text = cache(published_path), cache(published_text)

    def cleaned(value: Any, name: str) -> Any:
        if isinstance(value, str):
            return path(value) if name in NAME_FIELDS else text(value)
        if isinstance(value, Mapping):
            keys = [text(key) if isinstance(key, str) else key for key in value]
            return dict(zip(keys, (cleaned(item, str(key)) for key, item in value.items()), strict=True))
        if isinstance(value, Iterable) and not isinstance(value, bytes):
            items = [cleaned(item, name) for item in value]
            return tuple(items) if isinstance(value, tuple) else items
        return value

    return cleaned(value, name)

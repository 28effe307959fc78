"""Secrets in text that somebody will read: tokens, passwords in URLs, signed links. One function for all outputs."""

from __future__ import annotations

import os
import re
import stat
from functools import lru_cache
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote

__all__ = ["MASK", "mask_error", "mask_secrets", "remember_secret"]

E = TypeVar("E", bound=BaseException)

MASK = "***"
# Shorter ones would mask parts of ordinary words.
SHORTEST = 6
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "HF_API_TOKEN")
URL_VARIABLES = ("HF_ENDPOINT", "HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "https_proxy", "http_proxy", "all_proxy")
# Without any of these there is nothing to mask but what is known.
SIGNS = re.compile(r"[@=]|hf_|eyJ|api_org_|Bearer|Basic")

# `user:password@` of a URL, up to the last @ before the path. The host stays.
USER_INFO = re.compile(r"""\b([A-Za-z][A-Za-z0-9+.-]*://)[^\s/?#'"<>\\]*@""")
# The same without a scheme, as it may stand in HF_ENDPOINT by mistake.
BARE_USER_INFO = re.compile(r"""^[^\s/@:'"<>]+:[^\s/@'"<>]+@(?=[\w.-]+(:\d+)?(/\S*)?$)""")
SECRET = r"(?:token|secret|passw(?:or)?d|pwd|key|sig(?:nature)?|credential|auth|pass|sas|code|policy)"
# In the query of a URL; elsewhere only names that mean nothing else (`eos_token=` is no secret).
QUERY = re.compile(rf"""([?&;#](?:[\w.-]*[_.-])?{SECRET}=)[^\s&;#'"<>\\]+""", re.IGNORECASE)
PARAMETER = re.compile(
    r"""((?<![\w-])(?:--token|(?:access|api|auth|hf|hub|client)[_-]?(?:token|key|secret)|secret|passw(?:or)?d)=)"""
    r"""[^\s&;#'"<>\\]+""",
    re.IGNORECASE,
)
HEADER = re.compile(r"\b((?:Bearer|Basic)\s+)[\w.~+/=-]{6,}")
TOKEN = re.compile(
    r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}\b|\bhf_(?:oauth|jwt)_[\w.-]{8,}|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+"
)

_remembered: set[str] = set()


def mask_secrets(text: str) -> str:
    """The text without tokens, passwords of URLs, and values of parameters that hold secrets.

    Args:
        text: a message, a command line, a file that will be published.
    """
    if not text:
        return text
    for secret in _known():
        text = text.replace(secret, MASK)
    if not SIGNS.search(text):
        return text
    text = BARE_USER_INFO.sub("", USER_INFO.sub(r"\1", text))
    text = QUERY.sub(rf"\1{MASK}", PARAMETER.sub(rf"\1{MASK}", text))
    return TOKEN.sub(MASK, HEADER.sub(rf"\1{MASK}", text))


def mask_error(error: E) -> E:
    """The error and what it was raised from, without secrets in their messages.

    Other libraries put whole URLs into theirs, and a traceback prints them all.
    """
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        found = waiting.pop()
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        masked = tuple(mask_secrets(item) if isinstance(item, str) else item for item in found.args)
        if masked != found.args:
            found.args = masked
        waiting += [found.__cause__, found.__context__]
    return error


def remember_secret(secret: str | None) -> None:
    """Mask this text from now on, whatever it looks like."""
    if secret and len(secret) >= SHORTEST:
        _remembered.add(secret)


def _known() -> tuple[str, ...]:
    """Secrets that are known to this process, the longest first."""
    here = os.environ.get
    tokens = (*map(here, TOKEN_VARIABLES), _saved_token(), *_remembered)
    return _longest_first(tokens, tuple(map(here, URL_VARIABLES)))


@lru_cache(maxsize=4)
def _longest_first(tokens: tuple[str | None, ...], urls: tuple[str | None, ...]) -> tuple[str, ...]:
    found = {(token or "").strip() for token in tokens}.union(*(_passwords(url or "") for url in urls))
    return tuple(sorted((secret for secret in found if len(secret) >= SHORTEST), key=len, reverse=True))


def _passwords(url: str) -> set[str]:
    """The password of a URL, as it is written and as it is meant."""
    place = re.split(r"[/?#]", url.partition("://")[2] or url, maxsplit=1)[0]
    user, at, _ = place.rpartition("@")
    password = user.partition(":")[2]
    return {password, unquote(password)} if at else set()


def _saved_token() -> str:
    """What `hf auth login` has saved."""
    path = _token_path(*map(os.environ.get, ("HF_TOKEN_PATH", "HF_HOME", "XDG_CACHE_HOME", "HOME")))
    try:
        found = os.stat(path)
        return _read_token(path, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else ""
    except (OSError, ValueError):  # not there, or not ours to read
        return ""


@lru_cache(maxsize=4)
def _token_path(token: str | None, hub: str | None, cache: str | None, _home: str | None) -> str:
    home = hub or os.path.join(cache or "~/.cache", "huggingface")
    return os.path.expanduser(token or os.path.join(home, "token"))


@lru_cache(maxsize=4)
def _read_token(path: str, _changed: int) -> str:
    return Path(path).read_text(encoding="utf-8").strip()

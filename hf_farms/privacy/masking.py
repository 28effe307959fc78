"""Mask secrets in output: tokens, passwords in URLs, signed links."""

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
# Characters. Shorter secrets would mask parts of ordinary words.
MIN_LENGTH = 6
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "HF_API_TOKEN")
URL_VARIABLES = ("HF_ENDPOINT", "HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "https_proxy", "http_proxy", "all_proxy")
# Text without any of these can only contain secrets that are known.
HINTS = re.compile(r"[@=]|hf_|eyJ|api_org_|Bearer|Basic")

# `user:password@` of a URL, up to the last @ before the path. The host stays.
USER_INFO = re.compile(r"""\b([A-Za-z][A-Za-z0-9+.-]*://)[^\s/?#'"<>\\]*@""")
# The same without a scheme, which users set as HF_ENDPOINT by mistake.
BARE_USER_INFO = re.compile(r"""^[^\s/@:'"<>]+:[^\s/@'"<>]+@(?=[\w.-]+(:\d+)?(/\S*)?$)""")
SECRET = r"(?:token|secret|passw(?:or)?d|pwd|key|sig(?:nature)?|credential|auth|pass|sas|code|policy)"
# In the query of a URL; elsewhere only unambiguous names (`eos_token=` is no secret).
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
    """Replace tokens, passwords in URLs, and values of secret parameters by `***`.

    Args:
        text: a message, a command line, or the content of a file to publish.
    """
    if not text:
        return text
    for secret in _known_secrets():
        text = text.replace(secret, MASK)
    if not HINTS.search(text):
        return text
    text = BARE_USER_INFO.sub("", USER_INFO.sub(r"\1", text))
    text = QUERY.sub(rf"\1{MASK}", PARAMETER.sub(rf"\1{MASK}", text))
    return TOKEN.sub(MASK, HEADER.sub(rf"\1{MASK}", text))


def mask_error(error: E) -> E:
    """Mask secrets in the messages of an error and its causes, in place, and return the error.

    Messages of other libraries contain whole URLs, and a traceback prints all of them.
    """
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        masked = tuple(mask_secrets(item) if isinstance(item, str) else item for item in current.args)
        if masked != current.args:
            current.args = masked
        pending += [current.__cause__, current.__context__]
    return error


def remember_secret(secret: str | None) -> None:
    """Mask this string from now on, whatever it looks like."""
    if secret and len(secret) >= MIN_LENGTH:
        _remembered.add(secret)


def _known_secrets() -> tuple[str, ...]:
    """Return the secrets of the environment, the saved token and remembered secrets, the longest first."""
    variable = os.environ.get
    tokens = (*map(variable, TOKEN_VARIABLES), _saved_token(), *_remembered)
    return _longest_first(tokens, tuple(map(variable, URL_VARIABLES)))


@lru_cache(maxsize=4)
def _longest_first(tokens: tuple[str | None, ...], urls: tuple[str | None, ...]) -> tuple[str, ...]:
    secrets = {(token or "").strip() for token in tokens}.union(*(_passwords(url or "") for url in urls))
    return tuple(sorted((secret for secret in secrets if len(secret) >= MIN_LENGTH), key=len, reverse=True))


def _passwords(url: str) -> set[str]:
    """Return the password of a URL, both percent-encoded and decoded."""
    netloc = re.split(r"[/?#]", url.partition("://")[2] or url, maxsplit=1)[0]
    user, at, _ = netloc.rpartition("@")
    password = user.partition(":")[2]
    return {password, unquote(password)} if at else set()


def _saved_token() -> str:
    """Return the token that `hf auth login` saved; "" if there is none."""
    path = _token_path(*map(os.environ.get, ("HF_TOKEN_PATH", "HF_HOME", "XDG_CACHE_HOME", "HOME")))
    try:
        status = os.stat(path)
        return _read_token(path, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else ""
    except (OSError, ValueError):  # missing or not readable
        return ""


@lru_cache(maxsize=4)
def _token_path(token: str | None, hf_home: str | None, cache: str | None, _home: str | None) -> str:
    home = hf_home or os.path.join(cache or "~/.cache", "huggingface")
    return os.path.expanduser(token or os.path.join(home, "token"))


@lru_cache(maxsize=4)
def _read_token(path: str, _mtime_ns: int) -> str:
    return Path(path).read_text(encoding="utf-8").strip()

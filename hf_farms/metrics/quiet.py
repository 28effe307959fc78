"""lm-eval as a guest: that it and what it needs are there, and that it neither prints nor draws bars of its own."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import wraps
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from hf_farms.errors import DataError, HfFarmsError

__all__ = ["quiet_lm_eval", "require_hub", "require_lm_eval"]

INSTALL = 'pip install -U "hf-farms[eval]"'
OLDEST = (0, 4, 13)
CONNECT_TIMEOUT = 5  # seconds


def require_lm_eval() -> str:
    """The version of lm-eval.

    Raises:
        HfFarmsError: it is not installed, or too old.
    """
    try:
        found = version("lm-eval")
    except PackageNotFoundError:
        raise HfFarmsError("tasks must have lm-eval, which is not installed.", hint=INSTALL) from None
    numbers = tuple(int(part) if part.isdigit() else 0 for part in found.split("."))
    if numbers < OLDEST:
        raise HfFarmsError(f"lm-eval must be {'.'.join(map(str, OLDEST))} or newer, got {found}.", hint=INSTALL)
    return found


def require_hub() -> None:
    """Ask the Hub for a sign of life: datasets would try for half a minute.

    Raises:
        DataError: it cannot be reached.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=CONNECT_TIMEOUT)
    except Exception as error:  # the HTTP library differs between versions of the client
        raise DataError(
            f"questions of these tasks are on the Hub, and {constants.ENDPOINT} cannot be reached "
            f"({type(error).__name__}).",
            hint="Check the network and HF_ENDPOINT. To use questions that are on this machine, set HF_HUB_OFFLINE=1.",
        ) from error


class _Kept(logging.Handler):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def _without_bar(begin: Callable[..., None]) -> Callable[..., None]:
    @wraps(begin)
    def silent(*args: Any, **options: Any) -> None:
        begin(*args, **{**options, "disable": True})

    return silent


@contextmanager
def quiet_lm_eval() -> Iterator[list[str]]:
    """While open, lm-eval prints nothing; its warnings are in the list that this gives."""
    from tqdm import tqdm

    logger, kept = logging.getLogger("lm_eval"), _Kept()
    before = logger.level, logger.propagate, tqdm.__init__, os.environ.get("DISABLE_MULTIPROC")
    logger.addHandler(kept)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    # It has bars that no argument turns off.
    tqdm.__init__ = _without_bar(tqdm.__init__)
    # Standard errors by resampling: a process for each core, forked from one that holds a model, saves nothing here.
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        with redirect_stdout(io.StringIO()):
            yield kept.said
    finally:
        logger.removeHandler(kept)
        logger.level, logger.propagate, tqdm.__init__ = before[:3]
        if before[3] is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = before[3]

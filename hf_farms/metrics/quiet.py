"""Check that lm-eval and the Hub are available, and silence the output and progress bars of lm-eval."""

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
    """Return the version of lm-eval.

    Raises:
        HfFarmsError: lm-eval is not installed, or too old.
    """
    try:
        installed = version("lm-eval")
    except PackageNotFoundError:
        raise HfFarmsError("tasks need lm-eval, which is not installed.", hint=INSTALL) from None
    numbers = tuple(int(part) if part.isdigit() else 0 for part in installed.split("."))
    if numbers < OLDEST:
        raise HfFarmsError(f"lm-eval must be {'.'.join(map(str, OLDEST))} or newer, got {installed}.", hint=INSTALL)
    return installed


def require_hub() -> None:
    """Raise within seconds if the Hub cannot be reached; datasets would retry for half a minute.

    Raises:
        DataError: the Hub cannot be reached.
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
            hint="Check the network and HF_ENDPOINT. To use questions in the local cache, set HF_HUB_OFFLINE=1.",
        ) from error


class _WarningCollector(logging.Handler):
    """Collect the messages of log records."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def _without_bar(init: Callable[..., None]) -> Callable[..., None]:
    @wraps(init)
    def silent(*args: Any, **options: Any) -> None:
        init(*args, **{**options, "disable": True})

    return silent


@contextmanager
def quiet_lm_eval() -> Iterator[list[str]]:
    """Silence lm-eval within the context, and collect its warnings in the list that is returned."""
    from tqdm import tqdm

    logger, collector = logging.getLogger("lm_eval"), _WarningCollector()
    before = logger.level, logger.propagate, tqdm.__init__, os.environ.get("DISABLE_MULTIPROC")
    logger.addHandler(collector)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    # Some of its progress bars cannot be turned off by an argument.
    tqdm.__init__ = _without_bar(tqdm.__init__)
    # Bootstrap without worker processes: forking a process that holds a model would save no time.
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        with redirect_stdout(io.StringIO()):
            yield collector.messages
    finally:
        logger.removeHandler(collector)
        logger.level, logger.propagate, tqdm.__init__ = before[:3]
        if before[3] is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = before[3]

"""Output that cannot be written: a full disk, or a device that takes nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from hf_farms.errors import OutputError

__all__ = ["PrintError", "close_streams", "printing", "say_lost"]


class PrintError(OutputError):
    """What was printed could not be written."""


@contextmanager
def printing() -> Iterator[None]:
    """Turn what a stdout that cannot write raises into one sentence.

    Raises:
        PrintError: it could not be written, for another reason than a reader who has seen enough.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        _lead_nowhere(sys.stdout)
        raise PrintError(
            f"stdout must take what is printed, got an error: {error.strerror or error}.",
            hint="Free some space, or send the output elsewhere.",
        ) from error


def say_lost(error: BaseException) -> None:
    """Say what `printing` raised, where no command is there to say it."""
    with suppress(OSError):
        print(f"Error: {error}", file=sys.stderr, flush=True)  # noqa: T201


def close_streams() -> bool:
    """Write what is still to be written; Python's own try at its exit ends with a traceback and another status.

    Returns:
        Whether stdout took it.
    """
    with suppress(OSError, ValueError, AttributeError):
        try:
            sys.stderr.flush()
        except OSError:
            _lead_nowhere(sys.stderr)
    try:
        with printing():
            if sys.stdout is not None and not sys.stdout.closed:
                sys.stdout.flush()
    except BrokenPipeError:
        _lead_nowhere(sys.stdout)
    except PrintError as error:
        say_lost(error)
        return False
    return True


def _lead_nowhere(stream: TextIO) -> None:
    """What a stream still holds is dropped."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

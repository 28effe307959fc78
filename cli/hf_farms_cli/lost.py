"""Errors of stdout and stderr themselves: a full disk, or a device that accepts no data."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from hf_farms.errors import OutputError

__all__ = ["PrintError", "close_streams", "printing", "say_lost"]


class PrintError(OutputError):
    """stdout could not be written."""


@contextmanager
def printing() -> Iterator[None]:
    """Turn an error of stdout into one sentence.

    Raises:
        PrintError: stdout could not be written, for another reason than a closed pipe.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        _discard(sys.stdout)
        raise PrintError(
            f"stdout must be writable, got an error: {error.strerror or error}.",
            hint="Free some space, or send the output elsewhere.",
        ) from error


def say_lost(error: BaseException) -> None:
    """Print an error of `printing` outside of commands, which print their own."""
    with suppress(OSError):
        print(f"Error: {error}", file=sys.stderr, flush=True)  # noqa: T201


def close_streams() -> bool:
    """Flush both streams. Python's own attempt at exit ends with a traceback and another exit status.

    Returns:
        Whether stdout was written.
    """
    with suppress(OSError, ValueError, AttributeError):
        try:
            sys.stderr.flush()
        except OSError:
            _discard(sys.stderr)
    try:
        with printing():
            if sys.stdout is not None and not sys.stdout.closed:
                sys.stdout.flush()
    except BrokenPipeError:
        _discard(sys.stdout)
    except PrintError as error:
        say_lost(error)
        return False
    return True


def _discard(stream: TextIO) -> None:
    """Drop the data that a stream still holds."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

"""stdout and stderr themselves: what may write to stdout, and errors such as a full disk."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import TextIO

from hf_farms.errors import OutputError

__all__ = ["PrintError", "close_streams", "libraries_to_stderr", "printing", "say_lost"]

# stdout of the commands that run, outermost first.
_own: list[TextIO] = []


class PrintError(OutputError):
    """stdout could not be written."""


@contextmanager
def libraries_to_stderr() -> Iterator[None]:
    """Send to stderr what libraries print: stdout is for the data of a command, which prints it within `printing`."""
    _own.append(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _own.pop()


@contextmanager
def printing() -> Iterator[None]:
    """Print to stdout, and turn its errors into one sentence.

    Raises:
        PrintError: stdout could not be written, for another reason than a closed pipe.
    """
    stdout = _own[-1] if _own else sys.stdout
    try:
        with redirect_stdout(stdout):
            yield
    except BrokenPipeError:
        raise
    except OSError as error:
        _discard(stdout)
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

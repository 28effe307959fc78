"""Atomic writes: a file appears under its name only when it is complete, and never replaces a link or a device."""

from __future__ import annotations

import errno
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hf_farms.errors import HfFarmsError, OutputError
from hf_farms.files.path_checks import check_replaceable

__all__ = ["UNFINISHED_FILE", "replacing", "write_text", "writing"]

# The temporary file that a killed process leaves behind. It is never pushed, because it ends in .partial.
UNFINISHED_FILE = ".hf-farms-*.partial"


@contextmanager
def replacing(path: Path, *, aside: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` when the block succeeds and is deleted otherwise.

    Args:
        path: the final path.
        aside: the folder of the temporary file, on the same disk; None: the folder of `path`. Libraries such as
            safetensors write temporary files of their own, which stay in that folder when the process is killed.

    Raises:
        OutputError: `path` exists and is not a regular file.
    """
    check_replaceable(path)
    unfinished = (aside or path.parent) / UNFINISHED_FILE.replace("*", secrets.token_hex(8))
    try:
        yield unfinished
        check_replaceable(path)
        unfinished.replace(path)
    finally:
        with suppress(OSError):
            unfinished.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Raise a full disk or a failed write as an `OutputError`.

    Raises:
        OutputError: the file could not be written.
    """
    try:
        yield
    except HfFarmsError:
        raise
    except Exception as error:  # safetensors raises its own class for a failed write
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        if not full and not isinstance(error, OSError) and "I/O error" not in str(error):
            raise
        reason = "the disk is full" if full else getattr(error, "strerror", None) or str(error)
        raise OutputError(
            f"{str(folder)!r} could not be written: {reason}.",
            hint=f"{'Free some space' if full else 'Check the folder'}, or choose another `output`, and run the same "
            "command again.",
        ) from error

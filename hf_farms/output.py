"""The folder of a result: unfinished work beside it, which the same command continues."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from hf_farms.errors import OutputError
from hf_farms.reports import REPORT_NAME

__all__ = ["OutputFolder", "replacing", "writing"]

T = TypeVar("T")

_STATE = ".hf-farms-unfinished"


class OutputFolder:
    """A folder that appears when it is complete: the work goes to `DIR.partial`, which is renamed at the end.

    `DIR.partial` survives a kill at any moment, and says in its state folder what it is the beginning of.

    Args:
        path: the folder to be.
        overwrite: whether a folder that is there, or the beginning of another result, may be replaced.

    Raises:
        OutputError: the root of a disk.
    """

    def __init__(self, path: str | Path, *, overwrite: bool = False) -> None:
        self.path = Path(path)
        if self.path.name in ("", ".."):
            self.path = Path(os.path.abspath(path))
        if not self.path.name:
            raise OutputError(f"output must be a folder with a name, got {str(path)!r}. Choose another --output.")
        self.partial = self.path.with_name(self.path.name + ".partial")
        self.state = self.partial / _STATE
        self._old = self.path.with_name(self.path.name + ".old.partial")
        self._overwrite = overwrite
        self._fingerprint: Mapping[str, object] = {}

    def check(self) -> None:
        """Refuse what must not be replaced, before any work.

        Raises:
            OutputError: something is there that may not be replaced, or the parent cannot be written.
        """
        if not self._parent().is_dir():
            raise OutputError(f"output must be in a folder, got {str(self.path)!r}, which is in a file.")
        if self.path.is_file() or self.path.is_symlink():
            raise OutputError(f"output must be a folder, got the file {str(self.path)!r}. Choose another --output.")
        if Path.cwd().is_relative_to(self.path.absolute()):
            raise OutputError(
                f"output must not be the folder that this runs in, got {str(self.path)!r}. Choose another --output."
            )
        if self.path.is_dir() and any(self.path.iterdir()) and not self._overwrite:
            whose = (
                "an earlier result" if (self.path / REPORT_NAME).exists() else "a folder that hf-farms did not write"
            )
            raise OutputError(
                f"output must be a new folder, got {str(self.path)!r}, which is {whose}.",
                hint="Choose another --output, or replace it with --overwrite.",
            )
        if self.partial.exists() and any(self.partial.iterdir()) and not self.state.exists():
            raise OutputError(
                f"{str(self.partial)!r} is needed for unfinished work, but hf-farms did not write what is there.",
                hint="Move it away, or choose another --output.",
            )
        if not os.access(self._parent(), os.W_OK):
            raise OutputError(f"output must be in a folder that can be written, got {str(self._parent())!r}.")

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """While open, no other process of this machine and user writes there; what may be there is checked again.

        Raises:
            OutputError: another one does, or has finished meanwhile.
        """
        from filelock import FileLock, Timeout

        # In the folder for temporary files, as the lock stays behind. A kill frees it.
        key = hashlib.sha256(str(self.path.absolute()).encode()).hexdigest()[:16]
        user = os.getuid() if hasattr(os, "getuid") else ""
        lock = FileLock(Path(tempfile.gettempdir()) / f"hf-farms-{user}-{key}.lock", timeout=0)
        try:
            with lock:
                self.check()
                yield
        except Timeout as error:
            raise OutputError(
                f"output must not be in use, got {str(self.path)!r}, which another hf-farms is writing.",
                hint="Wait for it, or choose another --output.",
            ) from error

    def check_space(self, needed: int) -> None:
        """Refuse a disk that the result does not fit on.

        Args:
            needed: bytes of the result; what `DIR.partial` holds of it already counts as there.

        Raises:
            OutputError: less is free.
        """
        there = sum(path.stat().st_size for path in self.partial.rglob("*") if path.is_file())
        free = shutil.disk_usage(self._parent()).free
        if needed - there > free:
            raise OutputError(
                f"output must fit on the disk, got {free / 1e9:.3g} GB free for {(needed - there) / 1e9:.3g} GB in "
                f"{str(self._parent())!r}.",
                hint="Free some space, or choose another --output.",
            )

    def _parent(self) -> Path:
        return next(p for p in self.path.absolute().parents if p.exists())

    def begin(self, fingerprint: Mapping[str, object]) -> Path:
        """Continue `DIR.partial` of an earlier run of the same; a new one is made with the first thing to keep.

        Args:
            fingerprint: everything that decides the bytes of the result, in a form that JSON can hold.

        Raises:
            OutputError: it is the beginning of something else.
        """
        different = self._differences(fingerprint)
        if different and not self._overwrite:
            raise OutputError(
                f"output must be new or the beginning of the same result, got {str(self.partial)!r}, which was begun "
                f"otherwise ({'; '.join(different)}).",
                hint="Choose another --output, or begin again with --overwrite.",
            )
        if different is None or different:
            shutil.rmtree(self.partial, ignore_errors=True)
        self._fingerprint = fingerprint
        return self.partial

    def _differences(self, fingerprint: Mapping[str, object]) -> list[str] | None:
        """What differs from the fingerprint of the unfinished work; None: there is none."""
        try:
            there = json.loads((self.state / "fingerprint.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        here = json.loads(json.dumps(fingerprint))
        keys = dict.fromkeys((*here, *there))
        return [
            f"{key}: {_short(here.get(key))}, there {_short(there.get(key))}"
            for key in keys
            if here.get(key) != there.get(key)
        ]

    def kept(
        self, name: str, compute: Callable[[], T], save: Callable[[T, Path], None], load: Callable[[Path], T]
    ) -> T:
        """The result of one stage, of this run or an earlier one.

        Args:
            name: of the file in the state folder.
            compute: makes it.
            save: writes it to a file.
            load: reads what `save` wrote.
        """
        path = self.state / name
        if path.exists():
            return load(path)
        result = compute()
        with writing(self.partial):
            if not (self.state / "fingerprint.json").exists():
                self.state.mkdir(parents=True, exist_ok=True)
                with replacing(self.state / "fingerprint.json") as unfinished:
                    unfinished.write_text(json.dumps(self._fingerprint, indent=2) + "\n", encoding="utf-8")
            with replacing(path) as unfinished:
                save(result, unfinished)
        return result

    def finish(self) -> Path:
        """Give the finished folder its name."""
        if self.path.exists():
            shutil.rmtree(self._old, ignore_errors=True)
            self.path.rename(self._old)
        # The state goes last: a kill in between must not leave a folder that nobody can continue.
        self.partial.rename(self.path)
        self.tidy()
        return self.path

    def tidy(self) -> None:
        """Remove what a kill during `finish` may have left."""
        shutil.rmtree(self.path / _STATE, ignore_errors=True)
        shutil.rmtree(self._old, ignore_errors=True)


def _short(value: object) -> str:
    """A setting, or the beginning of a hash."""
    shown = repr(value)
    return f"{shown[:13]}...'" if isinstance(value, str) and len(value) == 64 else shown


@contextmanager
def replacing(path: Path, *, aside: Path | None = None) -> Iterator[Path]:
    """A name to write to, which becomes `path` when everything is written.

    Args:
        path: the file to be.
        aside: a folder for what is not finished, on the same disk; None: beside the file. Libraries have unfinished
            files of their own (safetensors), which a kill leaves where they were.
    """
    unfinished = (aside or path.parent) / f"{path.name}.tmp"
    yield unfinished
    unfinished.replace(path)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a full disk or a refused write into one sentence.

    Raises:
        OutputError: the file could not be written.
    """
    try:
        yield
    except Exception as error:  # safetensors raises its own class for a failed write
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        if not full and not isinstance(error, OSError) and "I/O error" not in str(error):
            raise
        reason = "the disk is full" if full else str(error)
        raise OutputError(
            f"{str(folder)!r} could not be written: {reason}.",
            hint=f"{'Free some space' if full else 'Check the folder'}, or choose another --output, and run the same "
            "command again.",
        ) from error

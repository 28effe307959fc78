"""The folder of a result: unfinished work beside it, which the same command continues."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from hf_farms.config.renamed import current_name
from hf_farms.errors import OutputError
from hf_farms.files.atomic_writes import UNFINISHED_FILE, replacing, write_text, writing
from hf_farms.files.path_checks import check_file, check_name
from hf_farms.files.paths import kind_of, nearest
from hf_farms.output.allowed_paths import PARTIAL, Reads, check_folder, named_folder, partial_folder
from hf_farms.output.existing_results import STATE, check_target, check_unfinished, remove_leftovers
from hf_farms.output.recipe import Recipe

__all__ = ["OutputFolder", "replacing", "writing"]

T = TypeVar("T")


class OutputFolder:
    """A folder that appears when it is complete: the work goes to `DIR.partial`, which is renamed at the end.

    `DIR.partial` survives a kill at any moment, and says in its state folder what it is the beginning of.

    Args:
        path: the folder to be.
        overwrite: whether an earlier result of hf-farms that is there, or the beginning of another one, may be
            replaced. What hf-farms did not write is never replaced.
        reads: what the command reads, which must not lie there.

    Raises:
        OutputError: the root of a disk.
    """

    def __init__(self, path: str | Path, *, overwrite: bool = False, reads: Reads | None = None) -> None:
        self.path = named_folder(path)
        self.partial = partial_folder(self.path)
        self.state = self.partial / STATE
        self._overwrite, self._reads = overwrite, reads or {}
        self._fingerprint: Mapping[str, object] = {}

    def check(self) -> None:
        """Refuse what must not be replaced, before any work.

        Raises:
            OutputError: something is there that may not be replaced, or the parent cannot be written.
        """
        self.check_place()
        check_target(self.path, overwrite=self._overwrite)
        check_unfinished(self.partial)
        if not os.access(self._parent(), os.W_OK):
            raise OutputError(f"output must be in a folder that can be written, got {str(self._parent())!r}.")

    def check_name(self) -> None:
        """Refuse a name that the file system cannot hold.

        Raises:
            OutputError: it is too long, also for unfinished work.
        """
        check_name(self.path, suffix=PARTIAL)

    def check_place(self) -> None:
        """Refuse a place where no result may ever be, whatever lies there.

        Raises:
            OutputError: a name that is too long or that of unfinished work; a link, a file or a special file; a disk;
                the model, something else that is read, the Hub's cache, the folder that this runs in, or the user's
                home; a folder inside or around them.
        """
        self.check_name()
        check_folder(self.path, unfinished=self.partial, reads=self._reads)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """While open, no other process of this machine and user writes there; what may be there is checked again.

        Raises:
            OutputError: another one does, or has finished meanwhile.
        """
        from filelock import FileLock, Timeout

        # In the folder for temporary files, as the lock stays behind. A kill frees it.
        key = hashlib.sha256(os.fsencode(os.path.realpath(self.path))).hexdigest()[:16]
        user = os.getuid() if hasattr(os, "getuid") else ""
        place = Path(tempfile.gettempdir()) / f"hf-farms-{user}-{key}.lock"
        # Everybody writes there: a link would lead the lock to a file of somebody else.
        check_file(place, argument="lock")
        lock = FileLock(place, timeout=0)
        try:
            with lock:
                self.check()
                yield
        except Timeout as error:
            raise OutputError(
                f"output must not be in use, got {str(self.path)!r}, which another hf-farms is writing.",
                hint="Wait for it, or choose another `output`.",
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
                hint="Free some space, or choose another `output`.",
            )

    def _parent(self) -> Path:
        return nearest(self.path.absolute().parent)

    def resume_or_start(self, fingerprint: Mapping[str, object]) -> Path:
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
                hint="Choose another `output`, or begin again with `overwrite=True`.",
            )
        with writing(self.partial):
            if different is None or different:
                check_unfinished(self.partial, replaces=True)
                if kind_of(self.partial) is not None:
                    shutil.rmtree(self.partial)
            else:
                for killed in self.partial.rglob(UNFINISHED_FILE):
                    killed.unlink()
        self._fingerprint = fingerprint
        return self.partial

    def _differences(self, fingerprint: Mapping[str, object]) -> list[str] | None:
        """What differs from the fingerprint of the unfinished work; None: there is none."""
        try:
            there = json.loads((self.state / "fingerprint.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(there, dict):  # damaged, and of no use
            return None
        here = json.loads(json.dumps(fingerprint))
        # Earlier releases wrote the build too, as in 2.13.0+cpu.
        there = {key: str(v).partition("+")[0] if key.startswith("versions.") else v for key, v in there.items()}
        there = {current_name(Recipe, key): value for key, value in there.items()}
        keys = dict.fromkeys((*here, *there))
        return [
            f"{key}: {_short(here.get(key))}, previously {_short(there.get(key))}"
            for key in keys
            if here.get(key) != there.get(key)
        ]

    def load_or_compute(
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
                write_text(self.state / "fingerprint.json", json.dumps(self._fingerprint, indent=2) + "\n")
            with replacing(path) as unfinished:
                save(result, unfinished)
        return result

    def finish(self) -> Path:
        """Give the finished folder its name.

        Raises:
            OutputError: something is there meanwhile that may not be replaced.
        """
        check_target(self.path, overwrite=self._overwrite)
        replaced = self.state / f"replaced-{secrets.token_hex(8)}"
        with writing(self.path):
            if kind_of(self.path) is not None:
                self.state.mkdir(parents=True, exist_ok=True)
                self.path.rename(replaced)
            # The state goes last, and what was replaced with it: a kill in between must not leave a folder that nobody
            # can continue.
            self.partial.rename(self.path)
        remove_leftovers(self.path)
        return self.path


def _short(value: object) -> str:
    """A setting, or the beginning of a hash."""
    shown = repr(value)
    return f"{shown[:13]}...'" if isinstance(value, str) and len(value) == 64 else shown

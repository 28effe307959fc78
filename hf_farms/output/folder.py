"""Output folder with resumable work: `DIR.partial` holds unfinished work until the result is complete."""

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

from hf_farms.config.renamed import absent_values, current_name
from hf_farms.errors import OutputError
from hf_farms.files.atomic_writes import UNFINISHED_FILE, replacing, write_text, writing
from hf_farms.files.path_checks import check_file, check_name, check_parent
from hf_farms.files.paths import kind_of, nearest
from hf_farms.output.allowed_paths import PARTIAL, Reads, check_folder, named_folder, partial_folder
from hf_farms.output.existing_results import STATE, check_target, check_unfinished, remove_leftovers
from hf_farms.output.recipe import Recipe
from hf_farms.processes import ONE_PROCESS, WorkingRanks, from_first_rank

__all__ = ["OutputFolder", "replacing", "writing"]

T = TypeVar("T")

# Settings that may change when unfinished work is resumed: what was done stays valid.
CHANGEABLE = ("prune.minutes",)


class OutputFolder:
    """A folder that appears when it is complete: files are written to `DIR.partial`, which is renamed at the end.

    `DIR.partial` survives a kill at any moment. Its state folder holds the fingerprint of the run that it belongs to.

    Args:
        path: the final folder.
        overwrite: whether to replace an existing result of hf-farms or unfinished work of other settings. Files that
            hf-farms did not write are never replaced.
        reads: inputs of the command, which must not be inside the folder.

    Raises:
        OutputError: the root of a disk.
    """

    def __init__(self, path: str | Path, *, overwrite: bool = False, reads: Reads | None = None) -> None:
        self.path = named_folder(path)
        self.partial = partial_folder(self.path)
        self.state = self.partial / STATE
        self._overwrite, self._reads = overwrite, reads or {}
        self._fingerprint: Mapping[str, object] = {}
        # Processes that make the result together: the first one locks, reads state and writes.
        self.ranks: WorkingRanks = ONE_PROCESS

    def check(self) -> None:
        """Refuse to replace files that are not ours, before any work.

        Raises:
            OutputError: the folder exists and may not be replaced, or the parent cannot be written.
        """
        self.check_place()
        check_target(self.path, overwrite=self._overwrite)
        check_unfinished(self.partial)
        check_parent(self.path.absolute().parent)

    def check_name(self) -> None:
        """Refuse a name that the file system cannot hold.

        Raises:
            OutputError: it is too long, also for unfinished work.
        """
        check_name(self.path, suffix=PARTIAL)

    def check_place(self) -> None:
        """Refuse a path where no result may ever be written, whatever it contains.

        Raises:
            OutputError: a name that is too long or that of unfinished work; a link, a file or a special file; a disk;
                the model, something else that is read, the Hub's cache, the folder that this runs in, or the user's
                home; a folder inside or around them.
        """
        self.check_name()
        check_folder(self.path, unfinished=self.partial, reads=self._reads)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder against other runs of this machine and user, and check it again.

        Of several processes that make the result together, the first one does so.

        Raises:
            OutputError: another process writes to it, or has finished it in the meantime.
        """
        from filelock import FileLock, Timeout

        if self.ranks.index > 0:
            yield
            return
        # In the folder for temporary files, as the lock file is not removed. A kill releases the lock.
        key = hashlib.sha256(os.fsencode(os.path.realpath(self.path))).hexdigest()[:16]
        user = os.getuid() if hasattr(os, "getuid") else ""
        lock_path = Path(tempfile.gettempdir()) / f"hf-farms-{user}-{key}.lock"
        # That folder is world-writable: a link could redirect the lock to a file of another user.
        check_file(lock_path, argument="lock")
        lock = FileLock(lock_path, timeout=0)
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
        """Refuse a disk without enough space for the result; of several processes, the first one checks.

        Args:
            needed: bytes of the result; those in `DIR.partial` are subtracted.

        Raises:
            OutputError: too little space is free.
        """
        from_first_rank(lambda: self._check_space(needed), self.ranks)

    def _check_space(self, needed: int) -> None:
        written = sum(path.stat().st_size for path in self.partial.rglob("*") if path.is_file())
        free = shutil.disk_usage(self._parent()).free
        if needed - written > free:
            raise OutputError(
                f"output must fit on the disk, got {free / 1e9:.3g} GB free for {(needed - written) / 1e9:.3g} GB in "
                f"{str(self._parent())!r}.",
                hint="Free some space, or choose another `output`.",
            )

    def _parent(self) -> Path:
        return nearest(self.path.absolute().parent)

    def resume_or_start(self, fingerprint: Mapping[str, object]) -> Path:
        """Resume `DIR.partial` if it belongs to the same run; otherwise it is created on first write.

        Args:
            fingerprint: everything that determines the bytes of the result, as JSON-serializable values; the time
                limit of a search may change.

        Raises:
            OutputError: it belongs to a run with other settings.
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

    def was_begun_with(
        self, settings: Mapping[str, object], data: Callable[[], Mapping[str, object]] | None = None
    ) -> bool:
        """Return whether unfinished work has these settings.

        Args:
            settings: by dotted name; a time limit may be another one.
            data: returns the rest of the fingerprint; it is compared too where other work is begun again, as
                `overwrite` says. Else other data are refused by `resume_or_start`.
        """
        if (previous := self._previous()) is None:
            return False
        previous = absent_values(Recipe) | previous
        current = json.loads(json.dumps(settings)).items()
        if any(previous.get(name) != value for name, value in current if name not in CHANGEABLE):
            return False
        return data is None or not self._overwrite or not self._differences({**settings, **data()})

    def _previous(self) -> dict[str, object] | None:
        """Return the fingerprint of the unfinished work; None if no work is unfinished."""
        try:
            previous = json.loads((self.state / "fingerprint.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(previous, dict):  # damaged
            return None
        # Earlier releases wrote the build too, as in 2.13.0+cpu.
        previous = {key: str(v).partition("+")[0] if key.startswith("versions.") else v for key, v in previous.items()}
        return {current_name(Recipe, key): value for key, value in previous.items()}

    def _differences(self, fingerprint: Mapping[str, object]) -> list[str] | None:
        """List differences from the fingerprint of the unfinished work; None if no work is unfinished."""
        if (previous := self._previous()) is None:
            return None
        current = json.loads(json.dumps(fingerprint))
        previous = {name: v for name, v in absent_values(Recipe).items() if name in current} | previous
        keys = dict.fromkeys((*current, *previous))
        return [
            f"{key}: {_short(current.get(key))}, previously {_short(previous.get(key))}"
            for key in keys
            if key not in CHANGEABLE and current.get(key) != previous.get(key)
        ]

    def load_or_compute(
        self, name: str, compute: Callable[[], T], save: Callable[[T, Path], None], load: Callable[[Path], T]
    ) -> T:
        """Load the result of a stage that an earlier run saved, or compute and save it.

        Of several processes the first one loads and saves, and all return the same result.

        Args:
            name: of the file in the state folder.
            compute: returns the result; several processes call it together.
            save: writes it to a file.
            load: reads a file that `save` wrote.
        """
        path = self.state / name
        if from_first_rank(path.exists, self.ranks):
            return from_first_rank(lambda: load(path), self.ranks)
        result = compute()
        return from_first_rank(lambda: self._saved(path, result, save), self.ranks)

    def load_saved(self, name: str, load: Callable[[Path], T]) -> T | None:
        """Load the result of a stage that was saved before; None without one. Arguments as of `load_or_compute`."""
        path = self.state / name
        return from_first_rank(lambda: load(path) if path.exists() else None, self.ranks)

    def _saved(self, path: Path, result: T, save: Callable[[T, Path], None]) -> T:
        with writing(self.partial):
            if not (self.state / "fingerprint.json").exists():
                self.state.mkdir(parents=True, exist_ok=True)
                write_text(self.state / "fingerprint.json", json.dumps(self._fingerprint, indent=2) + "\n")
            with replacing(path) as unfinished:
                save(result, unfinished)
        return result

    def finish(self) -> Path:
        """Rename `DIR.partial` to the final folder.

        Raises:
            OutputError: the folder was created in the meantime and may not be replaced.
        """
        check_target(self.path, overwrite=self._overwrite)
        replaced = self.state / f"replaced-{secrets.token_hex(8)}"
        with writing(self.path):
            if kind_of(self.path) is not None:
                self.state.mkdir(parents=True, exist_ok=True)
                self.path.rename(replaced)
            # Remove the state and the replaced folder last: after a kill in between, the work must stay resumable.
            self.partial.rename(self.path)
        remove_leftovers(self.path)
        return self.path


def _short(value: object) -> str:
    """Format a setting for a message; hashes are shortened."""
    text = repr(value)
    return f"{text[:13]}...'" if isinstance(value, str) and len(value) == 64 else text

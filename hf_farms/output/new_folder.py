"""Write a folder that appears when it is complete, and never over anything else.

The files are written to `DIR.partial/.hf-farms-unfinished/result`, so that whatever a killed process leaves is
recognized, and removed by the next run.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_farms.errors import OutputError
from hf_farms.files.atomic_writes import writing
from hf_farms.files.paths import kind_of
from hf_farms.output.allowed_paths import Reads
from hf_farms.output.existing_results import check_unfinished
from hf_farms.output.folder import OutputFolder

__all__ = ["check_new_folder", "new_folder"]

RESULT = "result"


def check_new_folder(path: str | Path, *, reads: Reads) -> None:
    """Refuse, before any work, a path at which no folder can be made.

    Args:
        path: must be absent or an empty folder.
        reads: inputs of the command, which must not be inside the folder, nor contain it.

    Raises:
        OutputError: files are there; as `OutputFolder.check`.
    """
    _checked(path, reads)


@contextmanager
def new_folder(path: str | Path, *, reads: Reads, size: int = 0) -> Iterator[Path]:
    """Yield a folder to write to, which gets its name at the end of the block; an error removes it.

    Args:
        path: as for `check_new_folder`.
        reads: as for `check_new_folder`.
        size: expected bytes.

    Raises:
        OutputError: as `check_new_folder`; another process writes to it; the disk is full.
    """
    output = _checked(path, reads)
    with output.locked():
        _checked(path, reads)
        try:
            with writing(output.path):
                if kind_of(output.partial) is not None:
                    shutil.rmtree(output.partial)
                output.check_space(size)
                result = output.state / RESULT
                result.mkdir(parents=True)
                yield result
                result.rename(output.path)
        finally:
            shutil.rmtree(output.partial, ignore_errors=True)


def _checked(path: str | Path, reads: Reads) -> OutputFolder:
    output = OutputFolder(Path(path).expanduser(), reads=reads)
    output.check_place()
    if kind_of(output.path) is not None and any(output.path.iterdir()):
        raise OutputError(
            f"output must be a new folder, got {str(output.path)!r}, which has files.", hint="Choose another `output`."
        )
    output.check()
    check_unfinished(output.partial, replaces=True)
    if output.state.is_dir() and any(entry.name != RESULT for entry in output.state.iterdir()):
        raise OutputError(
            f"{str(output.partial)!r} is needed for unfinished work, but has that of a prune.",
            hint="Finish it, move it away, or choose another `output`.",
        )
    return output

"""License files of the dense model, and the NOTICE that its license requires."""

from __future__ import annotations

import warnings
from pathlib import Path

from hf_farms.errors import HfFarmsWarning
from hf_farms.files.atomic_writes import replacing, writing
from hf_farms.files.own_files import copy_file, describe_kind, is_own_file
from hf_farms.hub.base_model import LICENSE_FILE, base_model_of
from hf_farms.hub.client import hub_errors, with_retries
from hf_farms.licences import duties_of
from hf_farms.reports import BaseModelRecord

__all__ = ["copy_license_files"]

NOTICE = "NOTICE"


def copy_license_files(base: BaseModelRecord | Path, folder: Path, *, token: str | None = None) -> tuple[str, ...]:
    """Copy the license files of the dense model into a folder, and write the NOTICE that its license requires.

    Only regular files are copied, as a link in a local model may lead anywhere. A warning lists skipped files.

    Args:
        base: of a model on the Hub, at its recorded commit; or the folder of a local one.
        folder: destination; files of the same name are replaced.
        token: None: the token of `hf auth login`.

    Returns:
        Names of the files that were written.

    Raises:
        ModelError: a file does not exist, or access was not granted.
        HubError: the Hub cannot be reached.
        OutputError: the folder cannot be written.
    """
    if isinstance(base, Path):
        record = base_model_of(base)
        files = {name: base / name for name in record.files}
        _warn_of_left_out(base)
    else:
        record, files = base, _downloaded(base, token)
    duties = duties_of(record)
    with writing(folder):
        for name, path in files.items():
            with replacing(folder / name) as unfinished:
                copy_file(path, unfinished)
        notice = duties.notice if duties is not None else None
        if notice is None or any(name.upper().startswith(NOTICE) for name in files):
            return tuple(files)
        with replacing(folder / NOTICE) as unfinished:
            unfinished.write_text(notice + "\n", encoding="utf-8")
    return (*files, NOTICE)


def _warn_of_left_out(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir() if LICENSE_FILE.fullmatch(path.name))
    left = {name: describe_kind(folder / name) for name in names if not is_own_file(folder / name)}
    for name, kind in left.items():
        if kind != "a folder":
            warnings.warn(
                f"{name} of {str(folder)!r} is not copied, as it is {kind}. If it is the license, replace it with "
                "the file itself.",
                HfFarmsWarning,
                stacklevel=3,
            )


def _downloaded(base: BaseModelRecord, token: str | None) -> dict[str, Path]:
    from huggingface_hub import hf_hub_download

    files = {}
    for name in base.files:
        with hub_errors(base.repo_id, action="ask", revision=base.revision):
            # Resolved, as the cache may hold links.
            files[name] = Path(
                with_retries(
                    lambda name=name: hf_hub_download(  # type: ignore[misc]
                        base.repo_id, name, revision=base.revision, token=token, library_name="hf-farms"
                    ),
                    what=f"Downloading {name}",
                    reads=True,
                )
            ).resolve()
    return files

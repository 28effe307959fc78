"""Load an adapter from a folder or the Hub; everything is checked before it is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from hf_farms.errors import DataError, HfFarmsError
from hf_farms.files import names
from hf_farms.files.documents import load_json, read_text, short_repr
from hf_farms.reports import READABLE_VERSIONS
from hf_farms.s2ft.adapters.file_checks import checked_adapter
from hf_farms.s2ft.adapters.files import INDEX, KEY, digest_of
from hf_farms.s2ft.adapters.patches import S2FTAdapter

__all__ = ["holds_adapter", "load_adapter", "read_adapter", "read_description"]

SHOWN = "Save the adapter again, or download it again."


def load_adapter(name: str | Path, *, revision: str | None = None) -> S2FTAdapter:
    """Load an adapter from a folder or the Hub; see `S2FTAdapter.from_pretrained`."""
    from hf_farms.privacy.publishing import is_local

    if not isinstance(name, str | Path):
        raise ValueError(f"name must be a folder or an id of the Hub, got {short_repr(name)}. Pass where it was saved.")
    if isinstance(name, Path) or Path(name).exists() or is_local(name):
        return read_adapter(Path(name))
    return read_adapter(_downloaded(name, revision), shown=name)


def read_adapter(folder: Path, *, shown: str | None = None) -> S2FTAdapter:
    """Read and check the files of `save_adapter`.

    Args:
        folder: with the files.
        shown: its name in messages; None: the path.

    Raises:
        DataError: missing, truncated or changed files.
    """
    return read_description(folder, shown=shown)[0]


def read_description(folder: Path, *, shown: str | None = None) -> tuple[S2FTAdapter, dict[str, Any]]:
    """Read an adapter as `read_adapter` does, with the description in its weights file, whose digest was checked.

    Args:
        folder: as for `read_adapter`.
        shown: as for `read_adapter`.
    """
    name = shown or str(folder)
    _check_no_model(folder, name)
    with _refusals(name), _opened(folder) as file:
        description = _description_in(file, folder)
        adapter = checked_adapter(description, file)
    with _refusals(name, names.SELECTION):
        _check_copy(folder / names.SELECTION, description)
    return adapter, description


def holds_adapter(folder: Path) -> bool:
    """Return whether a folder has an adapter with slices, not only a selection as earlier versions saved."""
    path = folder / names.SELECTED_CHANNELS
    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return KEY in (file.metadata() or {})
    except SafetensorError:
        return False


def _check_no_model(folder: Path, shown: str) -> None:
    """Refuse the folder of a whole model.

    Raises:
        DataError: with the functions to use instead.
    """
    weights = [path for name in (names.WEIGHTS, names.WEIGHTS_INDEX) if (path := folder / name).is_file()]
    if (folder / names.SELECTED_CHANNELS).is_file() or not weights or not (folder / names.MODEL_CONFIG).is_file():
        return
    described = " Its README.md describes it." if (folder / names.REPORT).is_file() else ""
    raise DataError(
        f"{shown!r} must hold an adapter of S2FT ({names.SELECTED_CHANNELS}), got the folder of a whole model.",
        hint=f"Name the folder of an adapter. A model is measured by `analyze_checkpoint`.{described}",
    )


@contextmanager
def _opened(folder: Path) -> Iterator[Any]:
    path = folder / names.SELECTED_CHANNELS
    if not path.is_file():
        raise ValueError(f"no {path.name}")
    try:
        # Read, not mapped: a mapped file that is truncated meanwhile would end the process.
        with safe_open(path, framework="pt", backend="pread") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ValueError(f"a truncated or corrupted {path.name} ({error})") from error


def _description_in(file: Any, folder: Path) -> dict[str, Any]:
    """Return the checked description inside the safetensors file."""
    text = (file.metadata() or {}).get(KEY)
    if text is None:
        older = all(name.endswith(INDEX) for name in file.keys()) and (folder / names.SELECTION).is_file()  # noqa: SIM118
        if older:
            raise DataError(
                f"{str(folder)!r} must hold an adapter, got a selection only: channels without trained slices, as "
                "earlier versions saved.",
                hint="Call S2FTAdapter.from_training(model, base) on the trained model; load_selection in "
                "hf_farms.s2ft.saving reads the selection.",
            )
        raise ValueError(f"a {names.SELECTED_CHANNELS} without the description of an adapter")
    description = load_json(text).data
    if not isinstance(description, dict):
        raise ValueError("a description that is not an object")
    if description.get("schema_version") not in READABLE_VERSIONS:
        raise ValueError(f"schema version {short_repr(description.get('schema_version'))}, which is not known")
    if description.get("digest") != digest_of(description):
        raise ValueError("a description that was changed: its digest is another one")
    return description


def _check_copy(path: Path, description: Mapping[str, Any]) -> None:
    """Reject a changed copy of the description; that of another adapter was left by a save that was killed."""
    if not path.is_file():
        return
    copy = load_json(read_text(path)).data
    if not isinstance(copy, dict):
        raise ValueError(f"a {path.name} that is not an object")
    if copy.get("digest") == description["digest"] and copy != description:
        raise ValueError(f"a {path.name} that was changed: it does not fit its digest")


@contextmanager
def _refusals(shown: str, file: str = names.SELECTED_CHANNELS) -> Iterator[None]:
    """Raise whatever a foreign file causes as one sentence that names the file."""
    try:
        yield
    except HfFarmsError:
        raise
    except Exception as error:  # a foreign file may raise anything
        raise DataError(
            f"{shown!r} must hold an adapter of S2FT ({file}), got {str(error).rstrip('.')}.",
            hint=SHOWN,
        ) from error


def _downloaded(name: str, revision: str | None) -> Path:
    """Download the files of one commit, and return their folder."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    from hf_farms.hub.client import hub_errors, with_retries

    with hub_errors(name, action="ask", revision=revision, packaged=()):
        try:
            path = with_retries(
                lambda: hf_hub_download(name, names.SELECTED_CHANNELS, revision=revision),
                what=f"Downloading {name}",
                reads=True,
            )
        except LocalEntryNotFoundError:  # not in the cache, and the Hub was not asked
            raise
        except EntryNotFoundError as error:
            raise DataError(
                f"{name!r} must hold an adapter of S2FT, got a repository without {names.SELECTED_CHANNELS}.",
                hint="Name the repository of an adapter.",
            ) from error
        folder = Path(path).parent
        # Of the same commit; an adapter is complete without it.
        with suppress(EntryNotFoundError):
            with_retries(
                lambda: hf_hub_download(name, names.SELECTION, revision=folder.name),
                what=f"Downloading {name}",
                reads=True,
            )
        return folder

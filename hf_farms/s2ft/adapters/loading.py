"""Load an adapter from a folder or the Hub; everything is checked before it is used."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hf_farms.config import S2FTConfig
from hf_farms.errors import DataError, HfFarmsError
from hf_farms.files import names
from hf_farms.files.dataclass_parsing import parse_dataclass
from hf_farms.files.documents import Document, load_json, read_text, short_repr
from hf_farms.reports import READABLE_VERSIONS
from hf_farms.s2ft.adapters.files import (
    BASE,
    BASE_MODEL,
    BASE_REVISION,
    CHANNELS,
    INDEX,
    KEY,
    VALUES,
    digest_of,
    is_printed,
)
from hf_farms.s2ft.adapters.patches import S2FTAdapter, WeightPatch, fingerprint

__all__ = ["holds_adapter", "load_adapter", "read_adapter", "read_description"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
# Parts of a parameter's name: never a path.
NAME = re.compile(r"[\w-]+(\.[\w-]+)*")
SHA256 = re.compile(r"[0-9a-f]{64}")
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
    with _refusals(name), _opened(folder) as file:
        description = _description_in(file, folder)
        adapter = _adapter(description, file)
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


def _adapter(description: Mapping[str, Any], file: Any) -> S2FTAdapter:
    dtype = DTYPES.get(str(description.get("dtype")))
    if dtype is None:
        raise ValueError(f"dtype {short_repr(description.get('dtype'))}, not one of {', '.join(DTYPES)}")
    weights, layers = description.get("weights"), description.get("layers")
    if not isinstance(weights, dict) or not weights or not isinstance(layers, dict):
        raise ValueError("a description without weights")
    for name in (*weights, *layers):
        if not NAME.fullmatch(name):
            raise ValueError(f"the name {short_repr(name)}, which is not that of a weight")
    entries = {name: _checked_entry(name, entry) for name, entry in weights.items()}
    expected = {f"{name}{end}" for name in weights for end in (INDEX, VALUES)} | {
        f"{name}{CHANNELS}" for name in layers
    }
    expected |= {f"{name}{BASE}" for name, entry in entries.items() if entry["includes_base"]}
    if different := sorted(expected ^ set(file.keys())):
        raise ValueError(f"tensors that do not fit the description, such as {short_repr(different[0])}")
    selection = description.get("selection")
    return S2FTAdapter(
        patches={name: _patch(name, entry, dtype, file) for name, entry in entries.items()},
        base_model=_text(description, "base_model", BASE_MODEL, "a Hub id or a path"),
        base_revision=_text(description, "base_revision", BASE_REVISION, "a revision"),
        selection=None if selection is None else parse_dataclass(Document(selection), S2FTConfig),
        channels={name: _channels(name, sha256, file) for name, sha256 in layers.items()},
        dtype=dtype,
    )


def _checked_entry(name: str, entry: Any) -> dict[str, Any]:
    """Return the description of a weight if each of its fields is valid."""
    if not isinstance(entry, dict):
        raise ValueError(f"a description of {name} that is not an object")
    shape, sha256, number = entry.get("shape"), entry.get("sha256"), entry.get("channels")
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(size) is int and size > 0 for size in shape)):
        raise ValueError(f"shape {short_repr(shape)} of {name}")
    if (
        entry.get("side") not in ("inputs", "outputs")
        or type(entry.get("dim")) is not int
        or entry["dim"] not in (0, 1)
    ):
        raise ValueError(f"side {short_repr(entry.get('side'))} and dim {short_repr(entry.get('dim'))} of {name}")
    if type(number) is not int or not 0 < number <= shape[entry["dim"]]:
        raise ValueError(f"{short_repr(number)} channels of {name}")
    if not isinstance(sha256, dict) or not all(
        isinstance(sha256.get(key), str) and SHA256.fullmatch(sha256[key]) for key in ("index", "values", "base")
    ):
        raise ValueError(f"no SHA-256 of the tensors of {name}")
    if not isinstance(entry.get("includes_base"), bool):
        raise ValueError(f"includes_base {short_repr(entry.get('includes_base'))} of {name}")
    return entry


def _patch(name: str, entry: Mapping[str, Any], dtype: torch.dtype, file: Any) -> WeightPatch:
    shape, dim, number, sha256 = entry["shape"], entry["dim"], entry["channels"], entry["sha256"]
    part = [number if axis == dim else size for axis, size in enumerate(shape)]
    indices = _tensor(file, f"{name}{INDEX}", torch.int64, [number], sha256["index"])
    if bool((indices.diff() <= 0).any()) or int(indices[0]) < 0 or int(indices[-1]) >= shape[dim]:
        raise ValueError(f"channels of {name} that are not ascending numbers from 0 to {shape[dim] - 1}")
    base = _tensor(file, f"{name}{BASE}", dtype, part, sha256["base"]) if entry["includes_base"] else None
    return WeightPatch(
        name=name,
        shape=(shape[0], shape[1]),
        side=entry["side"],
        dim=dim,
        indices=indices,
        values=_tensor(file, f"{name}{VALUES}", dtype, part, sha256["values"]),
        base=base,
        base_fingerprint=sha256["base"],
    )


def _tensor(file: Any, name: str, dtype: torch.dtype, shape: list[int], sha256: str) -> Tensor:
    """Read one tensor if it has this shape, dtype and hash; the shape is checked first, without reading it."""
    stored = list(file.get_slice(name).get_shape())
    if stored != shape:
        raise ValueError(f"shape {stored} instead of {shape} of {name}")
    tensor: Tensor = file.get_tensor(name)
    if tensor.dtype != dtype:
        raise ValueError(f"{str(tensor.dtype).removeprefix('torch.')} instead of {_short(dtype)} in {name}")
    if fingerprint(tensor) != sha256:
        raise ValueError(f"values of {name} that were changed: their SHA-256 is another one")
    return tensor


def _channels(name: str, sha256: object, file: Any) -> tuple[int, ...]:
    key = f"{name}{CHANNELS}"
    tensor = file.get_tensor(key)
    if tensor.dtype != torch.int64 or tensor.ndim != 1 or len(tensor) == 0 or bool((tensor.diff() <= 0).any()):
        raise ValueError(f"channels of {name} that are not ascending")
    if fingerprint(tensor) != sha256 or int(tensor[0]) < 0:
        raise ValueError(f"channels of {name} that were changed: their SHA-256 is another one")
    return tuple(tensor.tolist())


def _check_copy(path: Path, description: Mapping[str, Any]) -> None:
    """Reject a changed copy of the description; that of another adapter was left by a save that was killed."""
    if not path.is_file():
        return
    copy = load_json(read_text(path)).data
    if not isinstance(copy, dict):
        raise ValueError(f"a {path.name} that is not an object")
    if copy.get("digest") == description["digest"] and copy != description:
        raise ValueError(f"a {path.name} that was changed: it does not fit its digest")


def _text(description: Mapping[str, Any], key: str, pattern: re.Pattern[str], kind: str) -> str | None:
    """Return a text of the description if it can be printed as it is: no escape sequence of a terminal, one line."""
    value = description.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"{key} {short_repr(value)}, which is not a text")
    if not is_printed(value, pattern):
        raise ValueError(f"{key} {short_repr(value)}, which is not {kind}")
    return value


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def _refusals(shown: str, file: str = names.SELECTED_CHANNELS) -> Iterator[None]:
    """Raise whatever a foreign file causes as one sentence that names the file."""
    try:
        yield
    except HfFarmsError:
        raise
    except Exception as error:  # a foreign file may raise anything
        reason: BaseException = error
        while isinstance(reason, BaseExceptionGroup):  # what cattrs raises only counts what it holds
            reason = reason.exceptions[0]
        raise DataError(
            f"{shown!r} must hold an adapter of S2FT ({file}), got {str(reason).rstrip('.')}.",
            hint=SHOWN,
        ) from error


def _downloaded(name: str, revision: str | None) -> Path:
    """Download the files of one commit, and return their folder."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    from hf_farms.hub.client import hub_errors, with_retries

    with hub_errors(name, action="ask", revision=revision):
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

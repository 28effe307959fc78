"""A model's name -> where transformers can load it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from hf_farms.demo import demo_model
from hf_farms.errors import HfFarmsWarning, ModelError
from hf_farms.hub.client import hub_errors
from hf_farms.loading.meta_layout import find_meta_checkpoint
from hf_farms.loading.refusals import ADAPTER, adapter_error, refuse_pointers, refuse_special_files

__all__ = ["DEMO", "ResolvedModel", "find_model", "require_model", "resolve"]

DEMO = "demo"


@dataclass(frozen=True, kw_only=True)
class ResolvedModel:
    """Where transformers can load a model.

    Attributes:
        path: a folder or a hub id.
        revision: of the hub id.
        notes: what a reader of a result must know: another repository, or a conversion.
    """

    path: str
    revision: str | None = None
    notes: tuple[str, ...] = ()


def find_model(
    name: str, *, revision: str | None = None, allow_pickle: bool = False, tokenizer: bool = True
) -> ResolvedModel:
    """Find what transformers can load for a name.

    For a model in Meta's own layout that is another repository or a converted copy, which is said by a warning.

    Args:
        name: `demo`, a folder, or a hub id.
        revision: of a hub id.
        allow_pickle: convert pickled weights in Meta's layout.
        tokenizer: whether a tokenizer is converted too.

    Raises:
        ModelError: a folder without a model, a file, no name that a hub id could have, or as `find_meta_checkpoint`.
        HubError: the Hub cannot be reached.
    """
    path = resolve(name)
    original = find_meta_checkpoint(path, revision=revision, allow_pickle=allow_pickle)
    if original is None:
        return ResolvedModel(path=path, revision=revision)
    warnings.warn(original.note, HfFarmsWarning, stacklevel=2)
    return ResolvedModel(path=original.transformers_path(tokenizer=tokenizer), notes=(original.note,))


def resolve(name: str) -> str:
    """The folder of `demo`, a folder, or a hub id.

    Raises:
        ModelError: a folder without a model, a file, or no name that a hub id could have.
    """
    if name == DEMO:
        return str(demo_model())
    if not name.strip():
        raise ModelError(f"model must be a hub id, a folder or `demo`, got {name!r}.")
    folder = Path(name)
    if folder.is_dir():
        refuse_special_files(folder)
        if not (folder / "config.json").is_file():
            if (folder / "params.json").is_file() and any(folder.glob("consolidated.*")):
                return name
            if (folder / ADAPTER).is_file():
                raise adapter_error(name, folder / ADAPTER)
            raise ModelError(
                f"model folder must have a config.json, got {name!r} without.",
                hint="Name a folder that save_pretrained wrote.",
            )
        refuse_pointers(folder)
        if (folder / ADAPTER).is_file():
            raise adapter_error(name, folder / ADAPTER)
        if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
            raise ModelError(f"model folder must have weights (*.safetensors), got {name!r} without.")
        return name
    if folder.is_file():
        raise ModelError(f"model must be a folder or a hub id, got the file {name!r}.")
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise ModelError(f"model must be a hub id or an existing folder, got {name!r}. Check the path.")
    return name


def require_model(name: str) -> None:
    """Refuse a name under which there is no model, by asking for its config alone.

    Raises:
        ModelError: as `resolve`, or no such repository.
        HubError: the Hub cannot be reached.
    """
    from transformers.utils.hub import cached_file

    with hub_errors(name, action="load"):
        cached_file(resolve(name), "config.json", _raise_exceptions_for_missing_entries=False)

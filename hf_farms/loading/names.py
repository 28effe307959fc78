"""Names of models: a demo model, a folder, or a repository, with its info fetched from the Hub once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hf_farms.demo import DEMO_FOLDERS, demo_model
from hf_farms.errors import ModelError
from hf_farms.hub.base_model import ask_model, fetch_base_model, read_base_model, weights_size
from hf_farms.hub.client import hub_errors
from hf_farms.loading.refusals import ADAPTER, adapter_error, refuse_pointers, refuse_special_files
from hf_farms.registries import CHECKPOINT_FORMATS, FormatEntry

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

    from hf_farms.reports import BaseModelRecord

__all__ = ["ModelKind", "ModelRef", "require_model", "resolve"]

ModelKind = Literal["demo", "folder", "hub"]


@dataclass(frozen=True)
class ModelRef:
    """A model by name. Its info is fetched from the Hub at most once, on first use.

    Attributes:
        name: as the user gave it.
        kind: a demo model, a folder on this machine, or a repository on the Hub.
        revision: branch, tag or commit on the Hub.
    """

    name: str
    kind: ModelKind
    revision: str | None = None

    @classmethod
    def parse(cls, model: str | Path | ModelRef, revision: str | None = None) -> ModelRef:
        """Classify a name: a demo model, a folder, or a hub id, in this order.

        Args:
            model: the name; a `ModelRef` is returned as it is.
            revision: of a hub id.
        """
        if isinstance(model, ModelRef):
            return model
        name = str(model)
        # Path.is_dir raises for a name that is too long.
        kind: ModelKind = (
            "demo" if name in DEMO_FOLDERS else "folder" if name.strip() and os.path.isdir(name) else "hub"
        )
        return cls(name, kind, revision)

    @property
    def folder(self) -> Path | None:
        """The folder of the user; None for demo models and for repositories."""
        return Path(self.name) if self.kind == "folder" else None

    @property
    def path(self) -> str:
        """The path for transformers: a folder or a hub id."""
        return str(demo_model(self.name)) if self.kind == "demo" else self.name

    @cached_property
    def info(self) -> ModelInfo | None:
        """The model info of the Hub, with the sizes of files; None for local models, and with HF_HUB_OFFLINE.

        Raises:
            ModelError: the repository does not exist, or this token has no access.
            HubError: the Hub refused the token or cannot be reached.
        """
        from huggingface_hub import constants

        if self.kind != "hub" or constants.HF_HUB_OFFLINE:
            return None
        return ask_model(self.name, revision=self.revision)

    @cached_property
    def base_model(self) -> BaseModelRecord | None:
        """License, languages and commit, from the Hub or from the card in a folder; None if unknown.

        Raises:
            ModelError: as `fetch_base_model`.
            HubError: as `fetch_base_model`.
        """
        if self.kind == "hub":
            return fetch_base_model(self.name, revision=self.revision, info=self.info)
        return read_base_model(self.folder) if self.folder is not None else None

    @property
    def weights_size(self) -> int | None:
        """Bytes of the weight files; None if unknown.

        Raises:
            ModelError: as `info`.
            HubError: as `info`.
        """
        if self.kind != "hub":
            files = (path for path in Path(self.path).iterdir() if path.is_file())
            return weights_size({path.name: path.stat().st_size for path in files})
        siblings = self.info.siblings if self.info is not None else None
        return weights_size({file.rfilename: file.size or 0 for file in siblings or ()})

    def check(self) -> None:
        """Refuse a folder without a model, a file, and an invalid hub id, without a request to the Hub.

        Raises:
            ModelError: the name is invalid, or the folder is incomplete.
        """
        name = self.name
        if not name.strip():
            raise ModelError(f"model must be a hub id, a folder or `demo`, got {name!r}.")
        if self.folder is not None:
            _check_folder(self.folder, name)
        elif self.kind == "hub" and os.path.isfile(name):
            raise ModelError(f"model must be a folder or a hub id, got the file {name!r}.")
        elif self.kind == "hub" and (name.count("/") > 1 or name.startswith((".", "/", "~"))):
            raise ModelError(f"model must be a hub id or an existing folder, got {name!r}. Check the path.")


def model_weights_size(model: str, *, revision: str | None = None) -> int | None:
    """Return `ModelRef.weights_size` of a name; `hf_farms.hub.weights_size` of an earlier version.

    Args:
        model: `demo`, a folder, or a hub id.
        revision: of a hub id.

    Raises:
        ModelError: as `ModelRef.info`.
        HubError: as `ModelRef.info`.
    """
    return ModelRef.parse(model, revision).weights_size


def resolve(name: str) -> str:
    """Return the folder of `demo`, a folder, or a hub id.

    Raises:
        ModelError: a folder without a model, a file, or an invalid hub id.
    """
    model = ModelRef.parse(name)
    model.check()
    return model.path


def require_model(name: str) -> None:
    """Refuse a model that does not exist, by fetching its config only.

    Raises:
        ModelError: as `resolve`, or no such repository.
        HubError: the Hub cannot be reached.
    """
    from transformers.utils.hub import cached_file

    with hub_errors(name, action="load"):
        cached_file(resolve(name), "config.json", _raise_exceptions_for_missing_entries=False)


def _check_folder(folder: Path, name: str) -> None:
    refuse_special_files(folder)
    if not (folder / "config.json").is_file():
        if any(entry.converted and _has_files(folder, entry) for entry in CHECKPOINT_FORMATS.values()):
            return
        if (folder / ADAPTER).is_file():
            raise adapter_error(name, folder / ADAPTER)
        raise ModelError(
            f"model folder must have a config.json, got {name!r} without one.",
            hint="Name a folder written by save_pretrained.",
        )
    refuse_pointers(folder)
    if (folder / ADAPTER).is_file():
        raise adapter_error(name, folder / ADAPTER)
    if not any(_has_files(folder, entry) for entry in CHECKPOINT_FORMATS.values()):
        raise ModelError(f"model folder must have weights (*.safetensors), got {name!r} without any.")


def _has_files(folder: Path, entry: FormatEntry) -> bool:
    """Whether a folder has a file for each of the patterns of a format."""
    return all(any(path.is_file() for path in folder.glob(pattern)) for pattern in entry.files)

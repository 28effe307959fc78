"""Resolution of a model to a folder or repository that transformers can load."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Protocol

from hf_farms.errors import HfFarmsWarning
from hf_farms.loading.names import ModelRef
from hf_farms.registries import CHECKPOINT_FORMATS

__all__ = ["Replacement", "ResolvedModel", "find_model", "find_replacement"]


class Replacement(Protocol):
    """A model in a format that transformers cannot read, as returned by the function of a `FormatEntry`."""

    @property
    def replaced_by(self) -> str:
        """End of the note in reports and cards, such as "it was converted"."""

    def transformers_path(self, *, tokenizer: bool) -> str:
        """Return a repository or a folder that transformers can load; a copy is converted at most once."""


@dataclass(frozen=True, kw_only=True)
class ResolvedModel:
    """The folder or repository from which transformers can load a model.

    Attributes:
        path: a folder or a hub id.
        revision: of the hub id.
        notes: for reports and cards: another repository was used, or the weights were converted.
    """

    path: str
    revision: str | None = None
    notes: tuple[str, ...] = ()


def find_model(model: ModelRef, *, allow_pickle: bool = False, tokenizer: bool = True) -> ResolvedModel:
    """Find the files that transformers can load.

    For a model in a format that transformers cannot read (`CHECKPOINT_FORMATS`) this is another repository or a
    converted copy, with a warning.

    Args:
        model: `demo`, a folder, or a hub id.
        allow_pickle: convert pickled weights.
        tokenizer: whether a tokenizer is converted too.

    Raises:
        ModelError: a folder without a model, a file, an invalid hub id, or as `find_replacement`.
        HubError: the Hub cannot be reached.
    """
    model.check()
    match = find_replacement(model, allow_pickle=allow_pickle)
    if match is None:
        return ResolvedModel(path=model.path, revision=model.revision)
    replacement, note = match
    warnings.warn(note, HfFarmsWarning, stacklevel=2)
    return ResolvedModel(path=replacement.transformers_path(tokenizer=tokenizer), notes=(note,))


def find_replacement(model: ModelRef, *, allow_pickle: bool = False) -> tuple[Replacement, str] | None:
    """Recognize a model in a format that transformers cannot read, before any weights are downloaded.

    Args:
        model: `demo`, a folder, or a hub id.
        allow_pickle: accept pickled weights; no code in them is run.

    Returns:
        The replacement and the note for reports; None if transformers reads the format, or it is unknown.

    Raises:
        ModelError: an incomplete checkpoint, or pickled weights without consent.
        HubError: the Hub cannot be reached, and the model is not in the cache.
    """
    for entry in CHECKPOINT_FORMATS.values():
        if entry.converted:
            replacement: Replacement | None = entry.load()(model, allow_pickle=allow_pickle)
            if replacement is not None:
                return replacement, entry.sentence.format(name=model.name, replaced_by=replacement.replaced_by)
    return None

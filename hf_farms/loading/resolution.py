"""A model -> the folder or repository that transformers loads in its place."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from hf_farms.errors import HfFarmsWarning
from hf_farms.loading.meta_layout import find_meta_checkpoint
from hf_farms.loading.names import ModelRef

__all__ = ["ResolvedModel", "find_model"]


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


def find_model(model: ModelRef, *, allow_pickle: bool = False, tokenizer: bool = True) -> ResolvedModel:
    """Find the files that transformers can load.

    For a model in Meta's own layout that is another repository or a converted copy, which is said by a warning.

    Args:
        model: `demo`, a folder, or a hub id.
        allow_pickle: convert pickled weights in Meta's layout.
        tokenizer: whether a tokenizer is converted too.

    Raises:
        ModelError: a folder without a model, a file, no name that a hub id could have, or as `find_meta_checkpoint`.
        HubError: the Hub cannot be reached.
    """
    model.check()
    original = find_meta_checkpoint(model, allow_pickle=allow_pickle)
    if original is None:
        return ResolvedModel(path=model.path, revision=model.revision)
    warnings.warn(original.note, HfFarmsWarning, stacklevel=2)
    return ResolvedModel(path=original.transformers_path(tokenizer=tokenizer), notes=(original.note,))

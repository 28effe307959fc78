"""Loading of a tokenizer, with errors of ours for one that is missing or has custom code."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from hf_farms.errors import HfFarmsWarning, HubError, ModelError
from hf_farms.hub.errors import known_error
from hf_farms.loading.refusals import custom_code_error

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["load_tokenizer"]


def load_tokenizer(
    name: str, path: str, revision: str | None, *, needed: bool | None
) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer of a model; its code is never run.

    Args:
        name: as the user gave it.
        path: a folder or a hub id.
        revision: of the hub id.
        needed: whether a missing tokenizer is an error; otherwise the result is None.

    Raises:
        ModelError: it is needed, and missing or made by custom code.
        HubError: the Hub cannot be reached.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, revision=revision, trust_remote_code=False
        )
        return tokenizer
    except Exception as error:  # a missing tokenizer is an OSError, a ValueError or one of the tokenizers library
        if isinstance(known := known_error(error, name), HubError):
            raise known from error
        code = custom_code_error(name, "tokenizer") if "trust_remote_code" in str(error) else None
        if not needed:
            if code is not None:
                warnings.warn(f"{code} Nothing here uses it.", HfFarmsWarning, stacklevel=3)
            return None
        raise code or ModelError(
            f"model must have a tokenizer, got {name!r} without one that can be loaded.",
            hint="Save one in the folder, or use no text: `method='magnitude'` and `EvaluationConfig(source=None)` "
            "in `prune_checkpoint`, `metrics=['sparsity']` in `evaluate_checkpoint`.",
        ) from error

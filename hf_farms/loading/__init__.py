"""A model's name -> its files, its blocks, or the model.

opening.py           load a model into memory, or open its checkpoint
names.py             a name -> where transformers can load it
files.py             weight files, architecture, quantisation
devices.py           devices, their free memory, dtypes
missing_weights.py   compare a checkpoint with its config.json
refusals.py          adapters, git-lfs pointers, custom code
model_config.py      config.json
meta_layout.py       Meta's own layout: recognise it
meta_conversion.py   Meta's own layout: convert it
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_farms.loading.opening import LoadedModel, load_model, open_model

__all__ = ["LoadedModel", "load_model", "open_model"]


def __getattr__(name: str) -> Any:
    # Names are looked up before a command needs torch, which `opening` imports.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hf_farms.loading import opening

    return getattr(opening, name)

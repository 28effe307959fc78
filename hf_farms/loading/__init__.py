"""Load models: resolve a name, find the files, open the blocks or load the whole model.

opening.py           load a model into memory, or open its checkpoint
tokenizer.py         load the tokenizer
names.py             parse a name: demo, folder or Hub id; ask the Hub about it, once
resolution.py        find the folder or repository that transformers loads
files.py             weight files, architecture, quantization method
dequantizing.py      quantized checkpoints that can be dequantized
devices.py           devices, free memory, dtypes
missing_weights.py   refuse a checkpoint that does not match its config.json
refusals.py          refuse adapters, git-lfs pointers and custom code
model_config.py      read config.json
meta_layout.py       recognize Meta's layout of a Llama (consolidated.NN.pth)
meta_conversion.py   convert its weights
meta_tokenizer.py    convert its tokenizer
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hf_farms.files.moved_names import moved

if TYPE_CHECKING:
    from hf_farms.loading.opening import LoadedModel, load_model, open_model

__all__ = ["LoadedModel", "load_model", "open_model"]

_moved = moved(
    __name__,
    {"Loaded": "hf_farms.loading.opening.LoadedModel", "find_device": "hf_farms.loading.devices.find_device"},
)


def __getattr__(name: str) -> Any:
    # `opening` imports torch, which commands do not need while they look up names.
    if name not in __all__:
        return _moved(name, stacklevel=3)
    from hf_farms.loading import opening

    return getattr(opening, name)

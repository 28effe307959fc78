"""The contents of an adapter: for each weight the channels that changed, and their new values.

Symbols: m outputs, n inputs, s channels; a weight is `(m, n)`, or `(n, m)` in Conv1D of transformers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from hf_farms.config import S2FTConfig

__all__ = ["S2FTAdapter", "WeightPatch", "fingerprint"]

Side = Literal["inputs", "outputs"]


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightPatch:
    """New values of whole channels of one weight. All tensors are on the CPU and contiguous.

    Attributes:
        name: of the parameter, as in the files of the base checkpoint.
        shape: of the whole parameter as stored.
        side: whether the channels are inputs or outputs of the layer.
        dim: dimension of the stored parameter that `indices` counts: 1 for inputs and 0 for outputs of a Linear, the
            other way round for Conv1D.
        indices: `(s,)` int64, ascending, unique.
        values: `weight.index_select(dim, indices)` after the training, in the dtype of the model.
        base: the same before the training; None if the adapter was saved without it.
        base_fingerprint: of `base`, also where `base` was left out; see `fingerprint`.
    """

    name: str
    shape: tuple[int, int]
    side: Side
    dim: int
    indices: Tensor
    values: Tensor
    base: Tensor | None
    base_fingerprint: str


@dataclass(frozen=True, kw_only=True, eq=False)
class S2FTAdapter:
    """What S²FT learned, as a sparse patch of its base model (arXiv 2412.06289, section 5).

    Attributes:
        patches: by name of the weight, in the order of the model.
        base_model: Hub id of the base model, if known.
        base_revision: its commit, if known.
        selection: options of the selection; None for an adapter made by comparing two models.
        dtype: of all slices.
    """

    patches: Mapping[str, WeightPatch]
    base_model: str | None = None
    base_revision: str | None = None
    selection: S2FTConfig | None = None
    dtype: torch.dtype = field(default=torch.float32)

    def __len__(self) -> int:
        """Return the number of patched weights."""
        return len(self.patches)


def fingerprint(slices: Tensor) -> str:
    """Return the SHA-256 of dtype, shape and bytes of a slice, as 64 hexadecimal digits."""
    header = f"{slices.dtype} {tuple(slices.shape)} ".encode()
    return hashlib.sha256(header + slices.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()

"""Check that a method can prune a model, before anything is measured."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hf_farms.blocks import BlockSource
from hf_farms.blocks.arguments import WITHOUT_ACTIVATIONS
from hf_farms.config import PruneConfig
from hf_farms.errors import HfFarmsError
from hf_farms.pruning.removal_plan import check_layers

__all__ = ["check_method"]


# Number of token ids for the check, if no batch is given.
PROBE_TOKENS = 8


def check_method(source: BlockSource, config: PruneConfig, batch: Tensor | Mapping[str, Tensor] | None = None) -> None:
    """Raise if the method cannot prune these blocks, before hours of measuring.

    For a method that needs activations, this runs the model on a few tokens; a streamed model is read once.

    Args:
        source: blocks of the model.
        config: method and pattern.
        batch: token ids, or model inputs by name, to try; None for a few token ids.

    Raises:
        ModelError: as for `check_layers`; or the method needs activations, and the blocks cannot be run one after
            another.
    """
    check_layers(source, config)
    if not config.needs_calibration:
        return
    if batch is None:
        batch = torch.arange(PROBE_TOKENS)[None] % (source.vocabulary or PROBE_TOKENS)
    inputs = {"input_ids": batch} if isinstance(batch, Tensor) else batch
    try:
        source.check_chain(inputs)
    except HfFarmsError as error:
        error.hint = error.hint or WITHOUT_ACTIVATIONS
        raise

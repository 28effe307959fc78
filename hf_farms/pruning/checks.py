"""What a method cannot do with a model, found out before anything is measured."""

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


# Tokens of a model that is tried before there is a text.
PROBE = 8


def check_method(source: BlockSource, config: PruneConfig, batch: Tensor | Mapping[str, Tensor] | None = None) -> None:
    """Refuse what the method cannot do with these blocks, before hours of measuring.

    A method that needs activations runs the model shortly; a streamed one is read once for that.

    Args:
        source: the blocks.
        config: method and pattern.
        batch: token ids, or inputs of the model by name, to try; None: a few token ids.

    Raises:
        ModelError: as `check_layers`; or activations are measured, and the blocks cannot be run one after another.
    """
    check_layers(source, config)
    if not config.needs_calibration:
        return
    if batch is None:
        batch = torch.arange(PROBE)[None] % (source.vocabulary or PROBE)
    inputs = {"input_ids": batch} if isinstance(batch, Tensor) else batch
    try:
        source.check_chain(inputs)
    except HfFarmsError as error:
        error.hint = error.hint or WITHOUT_ACTIVATIONS
        raise

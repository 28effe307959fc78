"""Check that a method can prune a model, before anything is measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from hf_farms.blocks import BlockSource, ModelBlockSource
from hf_farms.blocks.arguments import WITHOUT_ACTIVATIONS
from hf_farms.config import PruneConfig
from hf_farms.config.checks import check
from hf_farms.errors import HfFarmsError, ModelError
from hf_farms.metrics.divergence import check_predicts
from hf_farms.pruning.removal_plan import check_layers
from hf_farms.registries import RECOVERIES
from hf_farms.registries.base import load

__all__ = ["check_folders", "check_method", "check_recovery"]

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
    check_recovery(source, config)
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


def check_folders(activations: str | Path | None, checkpoints: str | Path | None) -> None:
    """Refuse one folder for two things: files of the one would stop the other when the model is pruned already."""
    if activations is not None and checkpoints is not None:
        check(
            Path(activations).resolve() != Path(checkpoints).resolve(),
            "checkpoints",
            "another folder than activations",
            str(checkpoints),
        )


def check_recovery(source: BlockSource, config: PruneConfig) -> None:
    """Raise if the recovery trains the whole model, and cannot train this one.

    Raises:
        ModelError: the model is streamed, or is not a causal language model.
    """
    if not config.trains:
        return
    hint = f"Choose recover={RECOVERIES[config.recover].first!r}, which recovers block by block."
    if not isinstance(source, ModelBlockSource) or not source.in_memory:
        raise ModelError(
            f"model must be in memory as a whole for recover={config.recover!r}, got one that is streamed.",
            hint=f"{hint} Or load the model into memory with `stream=False`.",
        )
    check_predicts(source, hint=hint)
    if (path := RECOVERIES[config.recover].check) is not None:
        load(path)(source, config)

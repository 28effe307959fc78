"""The checkpoint that an engine was started with, as the base of an adapter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hf_farms.errors import ModelError
from hf_farms.s2ft.adapters.checkpoints import open_checkpoint
from hf_farms.s2ft.adapters.patches import S2FTAdapter, fingerprint
from hf_farms.s2ft.base_slices import take

__all__ = ["with_served_base"]


def with_served_base(adapter: S2FTAdapter, model: str | Path, *, revision: str | None = None) -> S2FTAdapter:
    """Check that a checkpoint is the base of an adapter, and return the adapter with the slices of its base.

    Cost: each weight of the adapter is read once from disk.

    Args:
        adapter: with the slices of its base or without them.
        model: folder or Hub id.
        revision: of a Hub id.

    Raises:
        ModelError: another base, with the first weight that differs; no such checkpoint, or one without safetensors.
        HubError: the Hub cannot be reached.
    """
    checkpoint, patches = open_checkpoint(model, revision=revision), {}
    for patch, _, tensor in checkpoint.read(adapter.patches.values()):
        base = take(tensor, patch.dim, patch.indices).contiguous()
        if fingerprint(base) != patch.base_fingerprint:
            known = "" if adapter.base_model is None else f" ({adapter.base_model})"
            raise ModelError(
                f"the engine must serve the base model of the adapter{known}, got {checkpoint.model.name!r} with other "
                f"weights in {patch.name}.",
                hint="Start it with the base model, in the revision that the training started from.",
            )
        patches[patch.name] = replace(patch, base=base)
    return replace(adapter, patches=patches)

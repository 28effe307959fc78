"""Plan how many weights to remove from each layer, and reject layers that cannot be pruned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from hf_farms.allocation.plan import BlockScores, block_sparsities, plan_sparsity
from hf_farms.allocation.sparsity import apportion, apportion_groups
from hf_farms.blocks import BlockSource, LayerMetadata, LayerView
from hf_farms.blocks.adapters import BASE
from hf_farms.config import PruneConfig
from hf_farms.errors import ModelError
from hf_farms.pruning.patterns import Removal
from hf_farms.registries import ALLOCATIONS
from hf_farms.reports import SpectralReport

__all__ = ["check_layers", "pattern_note", "plan_removals", "plan_targets", "prunable_layers"]

L = TypeVar("L", LayerMetadata, LayerView)


def prunable_layers(layers: Sequence[L]) -> list[L]:
    """Return all layers except routers: few weights, which select the expert of every token."""
    return [layer for layer in layers if layer.counts]


def check_layers(source: BlockSource, config: PruneConfig) -> None:
    """Raise if layers cannot be pruned with this config.

    Raises:
        ModelError: a layer is not a matrix, has adapters, or its inputs are not a multiple of the group size of the
            pattern.
    """
    for index in range(len(source)):
        for layer in source.metadata(index).layers:
            if layer.kind not in ("linear", "expert"):
                kind = {"conv": "a convolution"}.get(layer.kind, "complex weights")
                raise ModelError(f"layers to prune must be linear, got {kind} in {layer.name}.")
            if BASE in layer.parameter.split("."):
                # Checked for all layers first, so that no model is left half pruned.
                raise ModelError(
                    f"layers to prune must be without adapters, got one in {layer.name}.",
                    hint="Merge it first: model = model.merge_and_unload().",
                )
            if config.group and layer.counts and layer.shape[1] % config.group[1]:
                raise ModelError(
                    f"inputs of every layer must be a multiple of {config.group[1]} for pattern {config.pattern!r}, "
                    f"got {layer.shape[1]} in {layer.name}.",
                    hint="Choose another pattern, or 'unstructured'.",
                )


def plan_targets(
    source: BlockSource,
    config: PruneConfig,
    *,
    spectra: SpectralReport | None = None,
    scores: Sequence[float] | None = None,
) -> list[float]:
    """Return the sparsity of each block for the allocation of `config`.

    Args:
        source: gives the sizes, where there are no spectra.
        config: with the allocation.
        spectra: for an allocation that needs them.
        scores: of the blocks, for an allocation that needs activations.

    Raises:
        ValueError: as `plan_sparsity`.
    """
    if spectra is not None and ALLOCATIONS[config.allocation].needs_spectra:
        return plan_sparsity(spectra, config=config)
    sizes = [
        sum(layer.shape[0] * layer.shape[1] for layer in prunable_layers(source.metadata(i).layers))
        for i in range(len(source))
    ]
    return block_sparsities(BlockScores(sizes=sizes, scores=scores), config)


def plan_removals(source: BlockSource, targets: Sequence[float], config: PruneConfig) -> list[list[Removal]]:
    """Plan the removal of every layer of every block.

    Without a pattern the total is met exactly, with a pattern as closely as possible.

    Args:
        source: the blocks, for the layer sizes.
        targets: sparsity of each block.
        config: total sparsity, and pattern.

    Returns:
        Removals in the order of `prunable_layers` of each block.
    """
    sizes = [
        [layer.shape[0] * layer.shape[1] for layer in prunable_layers(source.metadata(i).layers)]
        for i in range(len(source))
    ]
    blocks = [sum(layers) for layers in sizes]
    total = round(config.sparsity * sum(blocks))
    if config.group is not None:
        kept, size = config.group
        zeros = [size - (kept or 0)] * len(blocks)
        if kept is None:
            zeros = apportion_groups(targets, sizes=blocks, total=total, group=size, highest=config.max_sparsity)
        return [
            [Removal(weights * z // size, (z, size)) for weights in layers]
            for z, layers in zip(zeros, sizes, strict=True)
        ]
    shares = [target * size for target, size in zip(targets, blocks, strict=True)]
    return [
        [Removal(n) for n in apportion(count, [count * size / block for size in layers], layers)]
        for count, block, layers in zip(apportion(total, shares, blocks), blocks, sizes, strict=True)
    ]


def pattern_note(removals: Sequence[Sequence[Removal]], sizes: Sequence[int], config: PruneConfig) -> str | None:
    """Describe the result of an `N:M` pattern with N chosen per block; None for other patterns.

    Args:
        removals: removals of every layer of every block.
        sizes: numbers of weights that add up to all prunable weights.
        config: pattern and total sparsity.
    """
    if config.group is None or config.group[0] is not None:
        return None
    size = config.group[1]
    kept = [size - block[0].group[0] for block in removals if block and block[0].group]
    reached = sum(removal.count for block in removals for removal in block) / sum(sizes)
    return (
        f"Pattern {config.pattern}: blocks keep {min(kept)} to {max(kept)} of every {size} weights, which removes "
        f"{reached:.6g} of all, the closest to {config.sparsity:g} that this pattern allows."
    )

"""How many weights go from each layer, and what stands in the way of that before any work."""

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
    """All but routers: a few weights that decide which expert every token goes to."""
    return [layer for layer in layers if layer.role != "router"]


def check_layers(source: BlockSource, config: PruneConfig) -> None:
    """Refuse layers that cannot be pruned so.

    Raises:
        ModelError: a layer that is no matrix, has adapters on it, or whose inputs cannot be parted into the groups of
            the pattern.
    """
    for index in range(len(source)):
        for layer in source.metadata(index).layers:
            if layer.kind not in ("linear", "expert"):
                what = {"conv": "a convolution"}.get(layer.kind, "complex weights")
                raise ModelError(f"layers to prune must be linear, got {what} in {layer.name}.")
            if BASE in layer.parameter.split("."):
                # Else the layers before it would be pruned by the time that it is found.
                raise ModelError(
                    f"layers to prune must be without adapters, got one in {layer.name}.",
                    hint="Merge it first: model = model.merge_and_unload().",
                )
            if config.group and layer.role != "router" and layer.shape[1] % config.group[1]:
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
    """For every layer of every block what goes: whole numbers that meet the total, to the weight without a pattern.

    Args:
        source: gives the sizes.
        targets: sparsity of each block.
        config: sparsity of all together, and pattern.
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


def pattern_note(cuts: Sequence[Sequence[Removal]], sizes: Sequence[int], config: PruneConfig) -> str | None:
    """What a mixed pattern came to, in a sentence; None for others.

    Args:
        cuts: of every layer of every block.
        sizes: weights of each block.
        config: with the pattern.
    """
    if config.group is None or config.group[0] is not None:
        return None
    size = config.group[1]
    kept = [size - block[0].group[0] for block in cuts if block and block[0].group]
    reached = sum(cut.count for block in cuts for cut in block) / sum(sizes)
    return (
        f"Pattern {config.pattern}: blocks keep {min(kept)} to {max(kept)} of every {size} weights, which removes "
        f"{reached:.6g} of all, the nearest to {config.sparsity:g} that whole numbers reach."
    )

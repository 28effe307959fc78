"""Plan how many weights to remove from each layer, and reject layers that cannot be pruned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from hf_farms.allocation.plan import WHOLE, Plan, Scores, mean_sparsity, plan_roles
from hf_farms.allocation.sparsity import apportion, apportion_groups
from hf_farms.blocks import BlockSource, LayerMetadata, LayerView
from hf_farms.blocks.adapters import BASE
from hf_farms.config import PruneConfig
from hf_farms.errors import ModelError
from hf_farms.pruning.patterns import Removal
from hf_farms.reports import SpectralReport

__all__ = [
    "block_targets",
    "check_layers",
    "ineffective_note",
    "pattern_note",
    "plan_removals",
    "plan_targets",
    "prunable_layers",
    "role_sizes",
]

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
    scores: Scores | Sequence[float | None] | None = None,
) -> Plan:
    """Return the sparsity of each role in each block for the allocation of `config`.

    Args:
        source: gives the sizes.
        config: with the allocation.
        spectra: for an allocation that needs them.
        scores: for an allocation that needs activations, of `score_blocks`, or one score for each block; for one that
            searches, the sparsity of each block.

    Raises:
        ValueError: as `plan_roles`.
    """
    if scores is not None and not isinstance(scores, Mapping):
        scores = {config.allocation: [{WHOLE: score} for score in scores]}
    return plan_roles(role_sizes(source), config, spectra=spectra, scores=scores)


def role_sizes(source: BlockSource) -> list[dict[str, int]]:
    """Return the number of weights to prune by role, for each block."""
    sizes: list[dict[str, int]] = []
    for index in range(len(source)):
        roles: dict[str, int] = {}
        for layer in prunable_layers(source.metadata(index).layers):
            roles[layer.role] = roles.get(layer.role, 0) + layer.shape[0] * layer.shape[1]
        sizes.append(roles)
    return sizes


def block_targets(source: BlockSource, plan: Plan, config: PruneConfig) -> list[float]:
    """Return the planned sparsity of each block as a whole."""
    return [mean_sparsity(roles, sizes, config) for roles, sizes in zip(plan, role_sizes(source), strict=True)]


def plan_removals(source: BlockSource, plan: Plan, config: PruneConfig) -> list[list[Removal]]:
    """Plan the removal of every layer of every block.

    Without a pattern the total is met exactly, with a pattern as closely as possible. Layers of a block with a common
    sparsity are rounded within the block, so that it is met there too.

    Args:
        source: the blocks, for the layer sizes.
        plan: sparsity of each role in each block.
        config: total sparsity, and pattern.

    Returns:
        Removals in the order of `prunable_layers` of each block.
    """
    layers = [prunable_layers(source.metadata(index).layers) for index in range(len(source))]
    sizes = [[layer.shape[0] * layer.shape[1] for layer in block] for block in layers]
    if all(len(set(roles.values())) <= 1 for roles in plan):
        return _removals_of_groups(sizes, block_targets(source, plan, config), config)
    targets = [roles[layer.role] for roles, block in zip(plan, layers, strict=True) for layer in block]
    singles = iter(_removals_of_groups([[size] for block in sizes for size in block], targets, config))
    return [[next(singles)[0] for _ in block] for block in sizes]


def _removals_of_groups(
    sizes: Sequence[Sequence[int]], targets: Sequence[float], config: PruneConfig
) -> list[list[Removal]]:
    """Return the removals of groups of layers that have one sparsity each."""
    groups = [sum(layers) for layers in sizes]
    total = round(config.sparsity * sum(groups))
    if config.group is not None:
        kept, size = config.group
        zeros = [size - (kept or 0)] * len(groups)
        if kept is None:
            zeros = apportion_groups(targets, sizes=groups, total=total, group=size, highest=config.max_sparsity)
        return [
            [Removal(weights * z // size, (z, size)) for weights in layers]
            for z, layers in zip(zeros, sizes, strict=True)
        ]
    shares = [target * size for target, size in zip(targets, groups, strict=True)]
    return [
        [Removal(n) for n in apportion(count, [count * size / group for size in layers], layers)]
        for count, group, layers in zip(apportion(total, shares, groups), groups, sizes, strict=True)
    ]


def ineffective_note(removals: Sequence[Sequence[Removal]], sizes: Sequence[int], config: PruneConfig) -> str | None:
    """Return the note of a pattern that gives every block the same N, though the allocation was to differ, or None.

    Args:
        removals: as for `pattern_note`.
        sizes: as for `pattern_note`.
        config: as for `pattern_note`.
    """
    numbers = {removal.group for block in removals for removal in block}
    return pattern_note(removals, sizes, config) if len(numbers) == 1 and not _may_be_even(config) else None


def _may_be_even(config: PruneConfig) -> bool:
    """Whether equal sparsities are no fault: they are asked for, or a search may find nothing better."""
    return config.allocation == "uniform" or config.searches


def pattern_note(removals: Sequence[Sequence[Removal]], sizes: Sequence[int], config: PruneConfig) -> str | None:
    """Describe the result of an `N:M` pattern with N chosen per block or layer; None for other patterns.

    Args:
        removals: removals of every layer of every block.
        sizes: numbers of weights that add up to all prunable weights.
        config: pattern and total sparsity.
    """
    if config.group is None or config.group[0] is not None:
        return None
    size = config.group[1]
    kept = [[size - removal.group[0] for removal in block if removal.group] for block in removals if block]
    unit = "blocks" if all(len(set(block)) == 1 for block in kept) else "layers"
    numbers = [number for block in kept for number in block]
    reached = sum(removal.count for block in removals for removal in block) / sum(sizes)
    span = f"{min(numbers)}" if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"
    note = (
        f"Pattern {config.pattern}: {unit} keep {span} of every {size} weights, which "
        f"removes {reached:.6g} of all, the closest to {config.sparsity:g} that this pattern allows."
    )
    if min(numbers) < max(numbers) or _may_be_even(config):
        return note
    return (
        f"{note} `allocation={config.allocation!r}` has no effect: its sparsities differ by less than 1/{size}. Choose "
        f"a larger spread, or a pattern of larger groups such as N:{2 * size}."
    )

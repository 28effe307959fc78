"""Which heads and channels are trained.

Symbols: u units of a structure (heads, groups of them, or channels), c weights that one unit trains.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hf_farms.allocation.plan import block_alphas
from hf_farms.allocation.sparsity import allocate_sparsity
from hf_farms.blocks import ModelBlockSource
from hf_farms.config import S2FTConfig
from hf_farms.coupling import Structure, coupled_structures
from hf_farms.errors import HfFarmsWarning, ModelError
from hf_farms.s2ft.scores import Batches, unit_norms
from hf_farms.spectra.analysis import analyze

__all__ = ["Batches", "Selection", "select_channels", "structures_of"]


@dataclass(frozen=True)
class Selection:
    """The trained channels of every layer.

    Attributes:
        config: what was asked for.
        channels: layer name -> selected channels, ascending: inputs of o and down, outputs of q, k, v, up and gate.
    """

    config: S2FTConfig
    channels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        """How many layers are trained."""
        return len(self.channels)


def select_channels(
    model: nn.Module,
    config: S2FTConfig | None = None,
    *,
    calibration: Batches | None = None,
    exclude: Selection | Sequence[Selection] = (),
) -> Selection:
    """Choose heads and feed-forward channels (S2FT, arXiv 2412.06289, section 3).

    Time: "random" none; "weight" one pass over the weights; "activation" and "product" a forward pass for every batch;
    "gradient" a forward and a backward pass. Memory: one number a channel; of gradients one weight's at a time.

    Args:
        model: a transformers model; not modified.
        config: budget, roles and strategy.
        calibration: batches as the model takes them (`{"input_ids": (b, t) int64, ...}`, with "labels" for the strategy
            "gradient"), for instance a DataLoader over about 1% of the data.
        exclude: selections of adapters that this one must share no head and no channel with.

    Returns:
        The selection; empty where the model has neither attention nor feed-forward layers. The same for the same model,
        data and seed.

    Raises:
        ValueError: a role that the model does not have, a budget too small for a single unit, a strategy without data.
        ModelError: roles whose weights are experts.
    """
    config = config or S2FTConfig()
    if config.needs_data and calibration is None:
        raise ValueError(
            f"calibration must be given for strategy {config.strategy!r}, got None. Pass some batches, about 1% of the "
            "training data."
        )
    source = ModelBlockSource(model)
    structures = structures_of(source, config)
    if not any(structures):
        return Selection(config)
    _check_roles(source, structures, config)
    excluded = [exclude] if isinstance(exclude, Selection) else list(exclude)
    free = [[_free_units(structure, excluded) for structure in found] for found in structures]
    budgets = _budgets(source, structures, config)
    counts = [
        _counts(found, room, budget, config) for found, room, budget in zip(structures, free, budgets, strict=True)
    ]
    _check_counts(structures, counts, config, source.count_parameters()[0], excluded)
    norms = None if config.strategy == "random" else unit_norms(source, structures, config, calibration)
    generator = torch.Generator().manual_seed(config.seed)
    channels: dict[str, tuple[int, ...]] = {}
    for b, found in enumerate(structures):
        for s, structure in enumerate(found):
            scores = torch.rand(structure.units, generator=generator) if norms is None else norms[b][s]
            units = _chosen(scores, free[b][s], counts[b][s], largest=norms is None or config.keep == "largest")
            for member in structure.trained(config.roles) if units else ():
                channels[member.layer.name] = tuple(member.channels(units).tolist())
    return Selection(config, channels)


def structures_of(source: ModelBlockSource, config: S2FTConfig) -> list[tuple[Structure, ...]]:
    """The coupled structures of each block that have a trained role.

    Heads under grouped-query attention come as whole groups where k or v, which they share, are trained or moved.
    """
    whole_groups = config.layout == "permuted" or bool({"k", "v"} & set(config.roles))
    found = (
        coupled_structures(source.metadata(index), source.config, whole_groups=whole_groups)
        for index in range(len(source))
    )
    return [tuple(s for s in structures if s.trained(config.roles)) for structures in found]


def _check_roles(source: ModelBlockSource, structures: list[tuple[Structure, ...]], config: S2FTConfig) -> None:
    layers = [layer for index in range(len(source)) for layer in source.metadata(index).layers]
    experts = {layer.role: layer for layer in layers if layer.kind == "expert"}
    for role in config.roles:
        if role in experts:
            name = experts[role].name
            raise ModelError(
                f"trained layers must be linear layers of their own, got experts inside one parameter for role "
                f"{role!r} ({name}), whose gradient would be that of all experts whole.",
                hint="Train the attention: S2FTConfig(roles=('o',)).",
            )
    known = {m.layer.role for found in structures for s in found for m in s.members}
    missing = [role for role in config.roles if not any(s.trained([role]) for found in structures for s in found)]
    if missing:
        has = [role for role in dict.fromkeys(layer.role for layer in layers) if role in known]
        raise ValueError(f"roles must be among those that the model has ({', '.join(has)}), got {missing[0]!r}.")


def _free_units(structure: Structure, excluded: Sequence[Selection]) -> list[int]:
    """The units that no other selection has a channel of, whatever layers it trains."""
    taken: set[int] = set()
    for member in structure.members:
        for selection in excluded:
            taken.update(c // member.width for c in selection.channels.get(member.layer.name, ()))
    return [unit for unit in range(structure.units) if unit not in taken]


def _budgets(source: ModelBlockSource, structures: list[tuple[Structure, ...]], config: S2FTConfig) -> list[float]:
    """Trained weights of each block."""
    taking_part = [index for index, found in enumerate(structures) if found]
    total = config.budget * source.count_parameters()[0]
    shares = [1 / len(taking_part)] * len(taking_part)
    if config.budget_allocation == "farms":
        scores, errors = block_alphas(analyze(source, config.farms))
        shares = (
            allocate_sparsity(
                [scores[index] for index in taking_part],
                sizes=[1] * len(taking_part),
                target=1 / len(taking_part),
                spread=config.spread,
                stderr=[errors[index] for index in taking_part],
                bounds=(0.0, 1.0),
            )
            if len(taking_part) > 1
            else shares
        )
    budgets = [0.0] * len(structures)
    for index, share in zip(taking_part, shares, strict=True):
        budgets[index] = share * total
    return budgets


def _counts(found: Sequence[Structure], free: Sequence[list[int]], budget: float, config: S2FTConfig) -> list[int]:
    """Units of each structure of a block. Heads are rounded, at least one where it fits; channels take the rest."""
    costs = [sum(m.weights_per_unit for m in structure.trained(config.roles)) for structure in found]
    counts, left = [], budget
    for index, (cost, room) in enumerate(zip(costs, free, strict=True)):
        wished = left / cost
        if index + 1 < len(costs):
            wished = max(round(wished / 2), 1) if cost <= left else 0
        counts.append(min(math.floor(wished), len(room)))
        left -= counts[-1] * cost
    return counts


def _check_counts(
    structures: list[tuple[Structure, ...]],
    counts: list[list[int]],
    config: S2FTConfig,
    parameters: int,
    excluded: Sequence[Selection],
) -> None:
    """Refuse to train nothing; warn where a role gets nothing."""
    total: dict[str, int] = {}
    smallest: dict[str, int] = {}
    for found, numbers in zip(structures, counts, strict=True):
        for structure, count in zip(found, numbers, strict=True):
            cost = sum(m.weights_per_unit for m in structure.trained(config.roles))
            total[structure.kind] = total.get(structure.kind, 0) + count
            smallest[structure.kind] = min(cost, smallest.get(structure.kind, cost))
    blocks = sum(bool(found) for found in structures)
    needed = {kind: cost * blocks / parameters for kind, cost in smallest.items()}
    if not any(total.values()):
        reason = " beside the excluded selections" if excluded else ""
        raise ValueError(
            f"budget must be at least {min(needed.values()):.2g} to train one head or channel in each block{reason}, "
            f"got {config.budget!r}."
        )
    for kind, count in total.items():
        if count == 0:
            roles = [r for r in config.roles if any(s.kind == kind and s.trained([r]) for f in structures for s in f)]
            warnings.warn(
                f"budget must be at least {needed[kind]:.2g} to train {', '.join(roles)} of this model, which have one "
                f"unit of {smallest[kind]:,} weights in each block, got {config.budget!r}: they are not trained.",
                HfFarmsWarning,
                stacklevel=3,
            )


def _chosen(scores: Tensor, free: list[int], count: int, *, largest: bool) -> list[int]:
    """The units with the largest or smallest scores, ascending; ties by index."""
    order = scores[free].argsort(descending=largest, stable=True)[:count]
    return sorted(free[i] for i in order.tolist())

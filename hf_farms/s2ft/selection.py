"""Which heads and channels are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hf_farms.blocks import ModelBlockSource
from hf_farms.blocks.coupling import Member, Structure, coupled_structures
from hf_farms.config import S2FTConfig
from hf_farms.errors import ModelError
from hf_farms.s2ft.budgets import unit_counts
from hf_farms.s2ft.unit_norms import Batches, unit_norms

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
    _check_roles(source, config)
    structures = structures_of(source, config)
    if not any(structures):
        return Selection(config)
    excluded = [exclude] if isinstance(exclude, Selection) else list(exclude)
    free = [
        [_free_units(structure, source, index, excluded) for structure in found]
        for index, found in enumerate(structures)
    ]
    counts = unit_counts(source, structures, [[len(units) for units in found] for found in free], config)
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


def _check_roles(source: ModelBlockSource, config: S2FTConfig) -> None:
    """Refuse roles that the model does not have, unless it has none at all."""
    blocks = [source.metadata(index) for index in range(len(source))]
    layers = [layer for block in blocks for layer in block.layers]
    experts = {layer.role: layer for layer in layers if layer.kind == "expert"}
    for role in config.roles:
        if role in experts:
            name = experts[role].name
            raise ModelError(
                f"trained layers must be linear layers of their own, got experts inside one parameter for role "
                f"{role!r} ({name}), whose gradient would be that of all experts whole.",
                hint="Train the attention: S2FTConfig(roles=('o',)).",
            )
    structures = [s for block in blocks for s in coupled_structures(block, source.config, whole_groups=True)]
    has = list(dict.fromkeys(member.layer.role for structure in structures for member in structure.members))
    for role in config.roles:
        if has and role not in has:
            raise ValueError(f"roles must be among those that the model has ({', '.join(has)}), got {role!r}.")


def _free_units(structure: Structure, source: ModelBlockSource, index: int, excluded: Sequence[Selection]) -> list[int]:
    """The units that no other selection has a channel of, whatever layers it trains."""
    taken = {unit for member in structure.members for unit in _units_in(member, excluded)}
    names = {member.layer.name for member in structure.members}
    # Where units are query heads, k and v belong to all heads of a group.
    for grouped in coupled_structures(source.metadata(index), source.config, whole_groups=True) if excluded else ():
        for member in grouped.members:
            if grouped.kind == structure.kind and member.layer.name not in names:
                heads = structure.units // grouped.units
                for group in _units_in(member, excluded):
                    taken.update(range(group * heads, (group + 1) * heads))
    return [unit for unit in range(structure.units) if unit not in taken]


def _units_in(member: Member, selections: Sequence[Selection]) -> set[int]:
    return {c // member.width for selection in selections for c in selection.channels.get(member.layer.name, ())}


def _chosen(scores: Tensor, free: list[int], count: int, *, largest: bool) -> list[int]:
    """The units with the largest or smallest scores, ascending; ties by index."""
    order = scores[free].argsort(descending=largest, stable=True)[:count]
    return sorted(free[i] for i in order.tolist())

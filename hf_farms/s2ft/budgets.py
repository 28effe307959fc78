"""Divide the budget into numbers of trained heads and channels for each block."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from hf_farms.allocation.alphas import block_alphas
from hf_farms.allocation.sparsity import allocate_sparsity
from hf_farms.blocks.coupling import Structure
from hf_farms.blocks.partitioned import whole_numel
from hf_farms.config import S2FTConfig
from hf_farms.config.checks import check
from hf_farms.config.effects import given_fields
from hf_farms.errors import HfFarmsWarning
from hf_farms.s2ft.coupled import CoupledModel
from hf_farms.spectra.analysis import analyze

__all__ = ["unit_counts"]


class _Share(NamedTuple):
    """The units of one structure of one block.

    Attributes:
        structure: with the units.
        taken: number of trained units.
        room: number of free units; `config.max_channels` may forbid to train all of them.
        cost: trained weights of one unit.
        needed: weights that the budget of the block must cover for one unit to be taken.
    """

    structure: Structure
    taken: int
    room: int
    cost: int
    needed: int


def unit_counts(coupled: CoupledModel, room: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the trained units of each structure of each block: at most `config.budget` of the model's parameters.

    Args:
        coupled: the model; its spectra are measured for the allocation "farms".
        room: number of free units of each structure.

    Raises:
        ValueError: no unit is free, or the budget or `config.max_channels` is too small for a single one.
    """
    structures, config = coupled.structures, coupled.config
    parameters = sum(map(whole_numel, coupled.source.model.parameters()))
    costs = [[sum(m.weights_per_unit for m in s.trained(config.roles)) for s in block] for block in structures]
    budgets = [share * config.budget * parameters for share in _block_shares(coupled)]
    allowed = [
        [min(units, _most_units(s, config)) for s, units in zip(*block, strict=True)]
        for block in zip(structures, room, strict=True)
    ]
    counts = [_unit_counts(*block) for block in zip(costs, allowed, budgets, strict=True)]
    shares = [
        # A head is taken where a channel fits beside it.
        _Share(structure, counts[b][s], room[b][s], costs[b][s], sum(costs[b][s:]))
        for b, block in enumerate(structures)
        for s, structure in enumerate(block)
    ]
    _check_shares(shares, sum(bool(block) for block in structures), config, parameters)
    if allowed != [list(block) for block in room]:
        unlimited = [_unit_counts(*block) for block in zip(costs, room, budgets, strict=True)]
        _check_limit(structures, counts, unlimited, config, parameters)
    return counts


def _channels_per_unit(structure: Structure, roles: Sequence[str]) -> int:
    """Return the trained channels of one unit, in the weight with most of them; fused weights have several members."""
    widths = Counter[str]()
    for member in structure.trained(roles):
        widths[member.layer.parameter] += member.width
    return max(widths.values())


def _most_units(structure: Structure, config: S2FTConfig) -> int:
    """Return the number of units that `config.max_channels` allows.

    Raises:
        ValueError: it does not allow a single one.
    """
    if config.max_channels is None:
        return structure.units
    width = _channels_per_unit(structure, config.roles)
    check(
        config.max_channels >= width,
        "max_channels",
        f"at least {width}, the channels of one head (under grouped-query attention, of a group of heads)",
        config.max_channels,
        "Raise it, or leave attention out of roles.",
    )
    return config.max_channels // width


def _check_limit(
    structures: Sequence[Sequence[Structure]],
    counts: Sequence[Sequence[int]],
    unlimited: Sequence[Sequence[int]],
    config: S2FTConfig,
    parameters: int,
) -> None:
    """Warn if `config.max_channels` leaves more than 1% of the budget unused."""

    def trained(units: Sequence[Sequence[int]]) -> int:
        return sum(
            count * sum(member.weights_per_unit for member in structure.trained(config.roles))
            for block in zip(structures, units, strict=True)
            for structure, count in zip(*block, strict=True)
        )

    if trained(counts) >= 0.99 * trained(unlimited):
        return
    least = max(
        count * _channels_per_unit(structure, config.roles)
        for block in zip(structures, unlimited, strict=True)
        for structure, count in zip(*block, strict=True)
    )
    _warn(
        f"max_channels must be at least {least} to use the budget of {config.budget!r}, got {config.max_channels}: "
        f"{trained(counts) / parameters:.2g} of the parameters are trained. Raise it, or add roles."
    )


def _block_shares(coupled: CoupledModel) -> list[float]:
    """Return the share of each block in the budget; their sum is 1."""
    source, config = coupled.source, coupled.config
    trained = [index for index, structures in enumerate(coupled.structures) if structures]
    shares = [1 / len(trained)] * len(trained)
    if config.budget_allocation == "farms" and len(trained) > 1:
        with given_fields(()):
            scores, errors = block_alphas(analyze(source, config.spectra))
        shares = allocate_sparsity(
            [scores[index] for index in trained],
            sizes=[1] * len(trained),
            target=1 / len(trained),
            spread=config.spread,
            stderr=[errors[index] for index in trained],
            bounds=(0.0, 1.0),
        )
    share_of = dict(zip(trained, shares, strict=True))
    return [share_of.get(index, 0.0) for index in range(len(coupled.structures))]


def _unit_counts(costs: Sequence[int], room: Sequence[int], budget: float) -> list[int]:
    """Divide a block's budget between its structures: half for heads, the rest for channels.

    The number of heads is rounded, and at least one if a channel fits beside it. A budget larger than all channels
    together can use gives more heads.
    """
    counts = []
    if len(costs) == 2:
        (head, channel), (heads, channels) = costs, room
        target = max(math.floor(budget / head / 2 + 0.5), 1, math.floor((budget - channels * channel) / head))
        counts = [min(target, heads) if budget >= head + min(channels, 1) * channel else 0]
        budget -= counts[0] * head
    return [*counts, *(min(math.floor(budget / costs[-1]), room[-1]) for _ in costs[-1:])]


def _check_shares(shares: Sequence[_Share], blocks: int, config: S2FTConfig, parameters: int) -> None:
    """Refuse to train nothing; warn if a role gets no unit, or all units together do not use the budget."""
    if not any(share.room for share in shares):
        roles = ", ".join(config.roles)
        raise ValueError(f"exclude must leave heads or channels free for {roles}, got selections that hold all.")
    trained = sum(share.taken * share.cost for share in shares)
    if not trained:
        least = min(share.needed for share in shares if share.room) * blocks / parameters
        raise ValueError(
            f"budget must be at least {least:.2g} to train one head or channel in each block, got {config.budget!r}."
        )
    for message in _frozen_roles(shares, blocks, config, parameters):
        _warn(message)
    if all(share.taken == share.room for share in shares) and trained < 0.99 * config.budget * parameters:
        _warn(
            f"budget must be at most {trained / parameters:.2g}, which is all that {', '.join(config.roles)} have to "
            f"train, got {config.budget!r}: all of them are trained."
        )


def _frozen_roles(shares: Sequence[_Share], blocks: int, config: S2FTConfig, parameters: int) -> Iterator[str]:
    """Yield a message for heads, and for channels, if no block trains any."""
    for kind in dict.fromkeys(share.structure.kind for share in shares):
        own = [share for share in shares if share.structure.kind == kind]
        if any(share.taken for share in own):
            continue
        roles = ", ".join(role for role in config.roles if any(share.structure.trained([role]) for share in own))
        if any(share.room for share in own):
            least = min(share.needed for share in own) * blocks / parameters
            yield (f"budget must be at least {least:.2g} to train {roles} too, got {config.budget!r}: they are frozen.")
        else:
            yield (f"exclude must leave some of {roles} free, got selections that hold all: they are frozen.")


def _warn(message: str) -> None:
    warnings.warn(message, HfFarmsWarning, stacklevel=6)

"""Divide the budget into numbers of trained heads and channels for each block."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from hf_farms.allocation.plan import block_alphas
from hf_farms.allocation.sparsity import allocate_sparsity
from hf_farms.blocks.coupling import Structure
from hf_farms.config import S2FTConfig
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
        room: number of free units.
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
        ValueError: no unit is free, or the budget is too small for a single one.
    """
    structures, config = coupled.structures, coupled.config
    parameters = sum(parameter.numel() for parameter in coupled.source.model.parameters())
    costs = [[sum(m.weights_per_unit for m in s.trained(config.roles)) for s in block] for block in structures]
    budgets = [share * config.budget * parameters for share in _block_shares(coupled)]
    counts = [_unit_counts(*block) for block in zip(costs, room, budgets, strict=True)]
    shares = [
        # A head is taken where a channel fits beside it.
        _Share(structure, counts[b][s], room[b][s], costs[b][s], sum(costs[b][s:]))
        for b, block in enumerate(structures)
        for s, structure in enumerate(block)
    ]
    _check_shares(shares, sum(bool(block) for block in structures), config, parameters)
    return counts


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

"""How many heads and channels of each block are trained."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

from hf_farms.allocation.plan import block_alphas
from hf_farms.allocation.sparsity import allocate_sparsity
from hf_farms.blocks import ModelBlockSource
from hf_farms.blocks.coupling import Structure
from hf_farms.config import S2FTConfig
from hf_farms.errors import HfFarmsWarning
from hf_farms.spectra.analysis import analyze

__all__ = ["unit_counts"]

Structures = Sequence[Sequence[Structure]]


class _Share(NamedTuple):
    """What one structure of one block got."""

    structure: Structure
    taken: int
    room: int
    cost: int
    needed: int


def unit_counts(
    source: ModelBlockSource, structures: Structures, room: Sequence[Sequence[int]], config: S2FTConfig
) -> list[list[int]]:
    """Units of each structure of each block; together at most `config.budget` of the model's parameters.

    Args:
        source: the model; its spectra are measured for the allocation "farms".
        structures: of each block, those with a trained role.
        room: how many units of each can be taken.
        config: budget, roles and allocation.

    Raises:
        ValueError: nothing can be taken, or the budget is too small for a single unit.
    """
    parameters = sum(parameter.numel() for parameter in source.model.parameters())
    costs = [[sum(m.weights_per_unit for m in s.trained(config.roles)) for s in found] for found in structures]
    budgets = [share * config.budget * parameters for share in _shares(source, structures, config)]
    counts = [_counts(*block) for block in zip(costs, room, budgets, strict=True)]
    shares = [
        # A head is taken where a channel fits beside it.
        _Share(structure, counts[b][s], room[b][s], costs[b][s], sum(costs[b][s:]))
        for b, found in enumerate(structures)
        for s, structure in enumerate(found)
    ]
    _check(shares, sum(bool(found) for found in structures), config, parameters)
    return counts


def _shares(source: ModelBlockSource, structures: Structures, config: S2FTConfig) -> list[float]:
    """Share of each block in the budget; their sum is 1."""
    taking_part = [index for index, found in enumerate(structures) if found]
    shares = [1 / len(taking_part)] * len(taking_part)
    if config.budget_allocation == "farms" and len(taking_part) > 1:
        scores, errors = block_alphas(analyze(source, config.farms))
        shares = allocate_sparsity(
            [scores[index] for index in taking_part],
            sizes=[1] * len(taking_part),
            target=1 / len(taking_part),
            spread=config.spread,
            stderr=[errors[index] for index in taking_part],
            bounds=(0.0, 1.0),
        )
    of_block = dict(zip(taking_part, shares, strict=True))
    return [of_block.get(index, 0.0) for index in range(len(structures))]


def _counts(costs: Sequence[int], room: Sequence[int], budget: float) -> list[int]:
    """Units of a block's structures: for heads half of its budget, for channels the rest.

    Heads are rounded, and there is at least one where a channel fits beside it; what all channels together cannot use
    goes to more heads.
    """
    counts = []
    if len(costs) == 2:
        (head, channel), (heads, channels) = costs, room
        wished = max(math.floor(budget / head / 2 + 0.5), 1, math.floor((budget - channels * channel) / head))
        counts = [min(wished, heads) if budget >= head + min(channels, 1) * channel else 0]
        budget -= counts[0] * head
    return [*counts, *(min(math.floor(budget / costs[-1]), room[-1]) for _ in costs[-1:])]


def _check(shares: Sequence[_Share], blocks: int, config: S2FTConfig, parameters: int) -> None:
    """Refuse to train nothing; warn where a role gets nothing, or all of them do not use the budget."""
    if not any(share.room for share in shares):
        roles = ", ".join(config.roles)
        raise ValueError(f"exclude must leave heads or channels free for {roles}, got selections that hold all.")
    trained = sum(share.taken * share.cost for share in shares)
    if not trained:
        least = min(share.needed for share in shares if share.room) * blocks / parameters
        raise ValueError(
            f"budget must be at least {least:.2g} to train one head or channel in each block, got {config.budget!r}."
        )
    for kind in dict.fromkeys(share.structure.kind for share in shares):
        own = [share for share in shares if share.structure.kind == kind]
        if any(share.taken for share in own):
            continue
        roles = ", ".join(role for role in config.roles if any(share.structure.trained([role]) for share in own))
        if any(share.room for share in own):
            least = min(share.needed for share in own) * blocks / parameters
            _warn(f"budget must be at least {least:.2g} to train {roles} too, got {config.budget!r}: they are frozen.")
        else:
            _warn(f"exclude must leave some of {roles} free, got selections that hold all: they are frozen.")
    if all(share.taken == share.room for share in shares) and trained < 0.99 * config.budget * parameters:
        _warn(
            f"budget must be at most {trained / parameters:.2g}, which is all that {', '.join(config.roles)} have to "
            f"train, got {config.budget!r}: all of them are trained."
        )


def _warn(message: str) -> None:
    warnings.warn(message, HfFarmsWarning, stacklevel=6)

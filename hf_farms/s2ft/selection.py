"""Choose the heads and channels that are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from hf_farms.blocks.coupling import Member, Structure
from hf_farms.blocks.model_checks import check_model
from hf_farms.blocks.partitioned import is_partitioned
from hf_farms.config import S2FTConfig
from hf_farms.config.checks import check, check_arguments
from hf_farms.config.effects import warn_unused
from hf_farms.data.batches import check_batches
from hf_farms.errors import ModelError
from hf_farms.s2ft.budgets import unit_counts
from hf_farms.s2ft.coupled import CoupledModel
from hf_farms.s2ft.unit_norms import Batches, unit_scores

__all__ = ["Batches", "Selection", "check_selections", "choose_channels", "select_channels"]


@dataclass(frozen=True)
class Selection:
    """The trained channels of every layer.

    Attributes:
        config: the options that it was made with.
        channels: for each layer its selected channels, ascending: inputs of o and down, outputs of q, k, v, up and
            gate.
    """

    config: S2FTConfig
    channels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of trained layers."""
        return len(self.channels)


def select_channels(
    model: nn.Module,
    config: S2FTConfig | None = None,
    *,
    calibration: Batches | None = None,
    exclude: Selection | Sequence[Selection] = (),
) -> Selection:
    """Choose heads and feed-forward channels (S2FT, arXiv 2412.06289, section 3).

    Time: "random" none; "weight" one pass over the weights; "activation" and "product" a forward pass for each batch;
    "gradient" a forward and a backward pass. Memory: one number per channel; gradients of one weight at a time.

    Args:
        model: a transformers model; not modified.
        config: budget, roles and strategy.
        calibration: batches as the model takes them (`{"input_ids": (b, t) int64, ...}`, with "labels" for the strategy
            "gradient"), for instance a DataLoader over about 1% of the data.
        exclude: selections of adapters; this one shares no head and no channel with them.

    Returns:
        The selection, empty if the model has neither attention nor feed-forward layers. The same model, data and seed
        give the same selection.

    Raises:
        ValueError: a role that the model does not have, a budget too small for a single unit, a strategy without data.
        ModelError: roles whose weights are experts.
    """
    check_model(model)
    check_arguments(select_channels, config=config)
    check_selections(calibration, exclude)
    config = config or S2FTConfig()
    warn_unused(config)
    return choose_channels(CoupledModel(model, config), calibration=calibration, exclude=exclude)


def choose_channels(
    coupled: CoupledModel, *, calibration: Batches | None = None, exclude: Selection | Sequence[Selection] = ()
) -> Selection:
    """Choose heads and channels as `select_channels` does, in a model whose structures are known."""
    config = coupled.config
    _check_calibration(config, calibration)
    if config.needs_data:
        _check_runs(coupled)
    _check_roles(coupled)
    if not any(coupled.structures):
        return Selection(config)
    excluded = [exclude] if isinstance(exclude, Selection) else list(exclude)
    free = [
        [_free_units(structure, coupled.grouped[index] if excluded else (), excluded) for structure in structures]
        for index, structures in enumerate(coupled.structures)
    ]
    counts = unit_counts(coupled, [[len(units) for units in block] for block in free])
    scores = unit_scores(coupled, calibration if config.needs_data else None)
    channels: dict[str, tuple[int, ...]] = {}
    for b, structures in enumerate(coupled.structures):
        for s, structure in enumerate(structures):
            units = _best_units(scores[b][s], free[b][s], counts[b][s], largest=config.keep == "largest")
            for member in structure.trained(config.roles) if units else ():
                channels[member.layer.name] = tuple(member.channels(units).tolist())
    return Selection(config, channels)


def _check_runs(coupled: CoupledModel) -> None:
    """Reject a model whose weights ZeRO-3 has partitioned before it was wrapped: it cannot be run."""
    if any(map(is_partitioned, coupled.source.model.parameters())):
        raise ModelError(
            f"weights must be whole for strategy {coupled.config.strategy!r}, got ones that ZeRO-3 has partitioned.",
            hint="Choose with a model that is loaded without DeepSpeed (select_channels), and pass selection=.",
        )


def _check_calibration(config: S2FTConfig, calibration: Batches | None) -> None:
    if config.needs_data and calibration is None:
        raise ValueError(
            f"calibration must be given for strategy {config.strategy!r}, got None. Pass some batches, about 1% of the "
            "training data."
        )


def check_selections(calibration: object, exclude: object, selection: object = None) -> None:
    """Refuse arguments of S2FT that are no batches and no selections.

    Raises:
        DataError: calibration that is no list of batches.
        ValueError: exclude or selection of another type.
    """
    if calibration is not None:
        check_batches(calibration)
    several = [exclude] if isinstance(exclude, Selection) else exclude
    ok = isinstance(several, Sequence) and all(isinstance(each, Selection) for each in several)
    check(ok, "exclude", "a Selection or a list of them", exclude, "select_channels and load_selection return one.")
    ok = selection is None or isinstance(selection, Selection)
    check(ok, "selection", "a Selection or None", selection, "select_channels and load_selection return one.")


def _check_roles(coupled: CoupledModel) -> None:
    """Refuse roles that the model does not have, unless it has none at all."""
    experts = {layer.role: layer for layer in coupled.layers.values() if layer.kind == "expert"}
    for role in coupled.config.roles:
        if role in experts:
            raise ModelError(
                f"trained layers must be linear layers of their own, got experts inside one parameter for role "
                f"{role!r} ({experts[role].name}), whose gradient would be that of all experts.",
                hint="Train the attention: S2FTConfig(roles=('o',)).",
            )
    for role in coupled.config.roles:
        if coupled.coupled_roles and role not in coupled.coupled_roles:
            raise ValueError(
                f"roles must be among those that the model has ({', '.join(coupled.trainable_roles)}), got {role!r}."
            )


def _free_units(structure: Structure, grouped: Sequence[Structure], excluded: Sequence[Selection]) -> list[int]:
    """Return the units of which no other selection has a channel, in any layer.

    Args:
        structure: with the units.
        grouped: the structures of its block with whole groups of heads as units.
        excluded: the other selections.
    """
    taken = {unit for member in structure.members for unit in _units_in(member, excluded)}
    names = {member.layer.name for member in structure.members}
    # Where units are query heads, k and v belong to all heads of a group.
    for other in grouped:
        for member in other.members:
            if other.kind == structure.kind and member.layer.name not in names:
                heads = structure.units // other.units
                for group in _units_in(member, excluded):
                    taken.update(range(group * heads, (group + 1) * heads))
    return [unit for unit in range(structure.units) if unit not in taken]


def _units_in(member: Member, selections: Sequence[Selection]) -> set[int]:
    return {c // member.width for selection in selections for c in selection.channels.get(member.layer.name, ())}


def _best_units(scores: Tensor, free: list[int], count: int, *, largest: bool) -> list[int]:
    """Return the free units with the largest or smallest scores, ascending; the first of equal ones."""
    order = scores[free].argsort(descending=largest, stable=True)[:count]
    return sorted(free[i] for i in order.tolist())

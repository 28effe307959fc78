"""Describe the trained part of a model: numbers, the line that PEFT prints, heads and channels of every block."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby

from torch import nn

from hf_farms.blocks.coupling import Structure
from hf_farms.blocks.partitioned import whole_numel
from hf_farms.s2ft.coupled import CoupledModel
from hf_farms.s2ft.selection import Selection
from hf_farms.s2ft.surgery import selection_of, selective_layers

__all__ = ["count_parameters", "print_trainable_parameters", "summary", "trainable_text"]


def print_trainable_parameters(model: nn.Module, coupled: CoupledModel | None = None) -> None:
    """Print how much of a model is trained, as models of PEFT do, and the heads and channels of every block.

    Args:
        model: with S2FT on it.
        coupled: of this model; None: it is searched again.

    Raises:
        ValueError: a plain model.
    """
    print(trainable_text(model, coupled))  # noqa: T201 - loggers of libraries are silent unless told otherwise


def trainable_text(model: nn.Module, coupled: CoupledModel | None = None) -> str:
    """Return the lines that `print_trainable_parameters` prints; blocks that train the same share a line.

    Raises:
        ValueError: a plain model.
    """
    selection = selection_of(model)
    if selection is None:
        raise ValueError(
            f"model must have S2FT on it, got a plain {type(model).__name__}. Call apply_s2ft(model) first."
        )
    coupled = coupled or CoupledModel(model, selection.config)
    numbers = summary(model, coupled)
    trained, share = int(numbers["trainable_parameters"]), numbers["trainable_share"]
    # The slices are copies: all parameters are those of the plain model.
    lines = [
        f"trainable params: {trained:,d} || all params: {round(trained / share):,d} || trainable%: {100 * share:.4f}"
    ]
    for text, blocks in groupby(_texts_by_block(coupled, selection), lambda block: block[1]):
        names = [name for name, _ in blocks]
        where = names[0] if len(names) == 1 else f"each of {names[0]} to {names[-1]}"
        lines.append(f"  {text} in {where}")
    return "\n".join(lines)


def summary(model: nn.Module, coupled: CoupledModel | None = None) -> dict[str, float]:
    """Count trained parameters, their share of the plain model's, and trained channels by role.

    Args:
        model: with S2FT on it.
        coupled: of this model; None: it is searched again.
    """
    selection = selection_of(model)
    assert selection is not None, "the model must have S2FT on it"
    layers = (coupled or CoupledModel(model, selection.config)).layers
    counts: dict[str, float] = defaultdict(int)
    for name, channels in selection.channels.items():
        counts[f"channels/{layers[name].role}"] += len(channels)
    trained, parameters = count_parameters(model)
    return {"trainable_parameters": trained, "trainable_share": trained / parameters, **counts}


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Return the number of trained parameters, and of all parameters of the plain model.

    Args:
        model: with S2FT on it.
    """
    trained = sum(whole_numel(layer.selected) for _, layer in selective_layers(model))
    return trained, sum(map(whole_numel, model.parameters())) - trained


def _texts_by_block(coupled: CoupledModel, selection: Selection) -> Iterator[tuple[str, str]]:
    """Yield the name of every block with a description of its trained part."""
    source = coupled.source
    heads = int(getattr(source.config, "num_attention_heads", 0) or 0)
    for index, structures in enumerate(coupled.structures):
        block = source.metadata(index)
        layers = {layer.name: layer for layer in block.layers if layer.name in selection.channels}
        texts = []
        for structure in structures:
            members = {member.layer.name for member in structure.members} & layers.keys()
            units = _whole_units(structure, selection)
            if units and structure.kind == "attention":
                texts.append(f"{units * heads // structure.units:,d} of {heads:,d} heads")
            elif units:
                texts.append(f"{units:,d} of {structure.units:,d} feed-forward channels")
            if units:
                layers = {name: layer for name, layer in layers.items() if name not in members}
        # A selection of the user's own may have any channels.
        for name, layer in layers.items():
            side, dim = ("inputs", 1) if layer.role in ("o", "down") else ("outputs", 0)
            texts.append(f"{len(selection.channels[name]):,d} of {layer.shape[dim]:,d} {side} of {layer.role}")
        yield block.name, ", ".join(texts) or "nothing"


def _whole_units(structure: Structure, selection: Selection) -> int:
    """Count the selected units; 0 unless all trained layers have the same whole units."""
    selected = [(m, selection.channels[m.layer.name]) for m in structure.members if m.layer.name in selection.channels]
    units = sorted({channel // member.width for member, channels in selected for channel in channels})
    whole = all(tuple(member.channels(units).tolist()) == tuple(channels) for member, channels in selected)
    return len(units) if whole else 0

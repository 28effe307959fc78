"""What S2FT trains of a model, in words: the line that PEFT prints, and the heads and channels of every block."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from torch import nn

from hf_farms.blocks import ModelBlockSource
from hf_farms.blocks.coupling import Structure
from hf_farms.s2ft.selection import Selection, structures_of
from hf_farms.s2ft.surgery import selection_of, summary

__all__ = ["print_trainable_parameters", "trainable_text"]


def print_trainable_parameters(model: nn.Module) -> None:
    """Print how much of a model is trained, as models of PEFT do, and the heads and channels of every block.

    Args:
        model: with S2FT on it.

    Raises:
        ValueError: a plain model.
    """
    print(trainable_text(model))  # noqa: T201 - loggers of libraries are silent unless told otherwise


def trainable_text(model: nn.Module) -> str:
    """The lines of `print_trainable_parameters`. Blocks that train the same share a line.

    Raises:
        ValueError: a plain model.
    """
    selection = selection_of(model)
    if selection is None:
        raise ValueError(
            f"model must have S2FT on it, got a plain {type(model).__name__}. Call apply_s2ft(model) first."
        )
    numbers = summary(model)
    trained, share = int(numbers["trainable_parameters"]), numbers["trainable_share"]
    # The slices are copies: all parameters are those of the plain model.
    lines = [
        f"trainable params: {trained:,d} || all params: {round(trained / share):,d} || trainable%: {100 * share:.4f}"
    ]
    for text, blocks in groupby(_blocks(model, selection), lambda block: block[1]):
        names = [name for name, _ in blocks]
        where = names[0] if len(names) == 1 else f"each of {names[0]} to {names[-1]}"
        lines.append(f"  {text} in {where}")
    return "\n".join(lines)


def _blocks(model: nn.Module, selection: Selection) -> Iterator[tuple[str, str]]:
    """Name of every block, and what is trained of it."""
    source = ModelBlockSource(model)
    heads = int(getattr(source.config, "num_attention_heads", 0) or 0)
    for index, structures in enumerate(structures_of(source, selection.config)):
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
            side, of = ("inputs", 1) if layer.role in ("o", "down") else ("outputs", 0)
            texts.append(f"{len(selection.channels[name]):,d} of {layer.shape[of]:,d} {side} of {layer.role}")
        yield block.name, ", ".join(texts) or "nothing"


def _whole_units(structure: Structure, selection: Selection) -> int:
    """How many heads, groups of heads or channels are selected; 0 unless all trained layers have the same, whole."""
    selected = [(m, selection.channels[m.layer.name]) for m in structure.members if m.layer.name in selection.channels]
    units = sorted({channel // member.width for member, channels in selected for channel in channels})
    whole = all(tuple(member.channels(units).tolist()) == tuple(channels) for member, channels in selected)
    return len(units) if whole else 0

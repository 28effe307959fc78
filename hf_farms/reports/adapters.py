"""What an adapter changes: its weights, channels and bytes, without their values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

__all__ = ["AdapterSummary", "LayerSummary", "PatchSummary"]


@dataclass(frozen=True, kw_only=True)
class PatchSummary:
    """A patched weight.

    Attributes:
        name: as in the files of the base checkpoint.
        side: whether the channels are inputs or outputs of the layer.
        shape: of the whole weight.
        channels: number of patched channels.
        size: number of channels of the weight.
        num_bytes: of the new values.
        includes_base: whether the adapter holds the slices of its base.
    """

    name: str
    side: str
    shape: tuple[int, int]
    channels: int
    size: int
    num_bytes: int
    includes_base: bool

    @property
    def layer(self) -> str:
        """The last part of the layer's name, such as `down_proj`."""
        return self.name.removesuffix(".weight").rpartition(".")[2]


@dataclass(frozen=True, kw_only=True)
class LayerSummary:
    """The patched weights of layers of one name, in all blocks.

    Attributes:
        layer: last part of their names.
        side: of their channels; "mixed" if they differ.
        weights: number of weights.
        channels: of all weights.
        most: of the weight with most of them.
        size: number of channels of all these weights.
    """

    layer: str
    side: str
    weights: int
    channels: int
    most: int
    size: int


@dataclass(frozen=True, kw_only=True)
class AdapterSummary:
    """An adapter without its values.

    Attributes:
        base_model: Hub id of the base model, or the name of its folder; None if unknown.
        base_revision: its commit, if known.
        dtype: of all slices.
        selection: options of the training's selection; None for an adapter made by comparing two models.
        patches: the patched weights, in the order of the model.
        num_bytes: of the new values.
        base_bytes: of the slices of the base; 0 if they were left out.
    """

    base_model: str | None
    base_revision: str | None
    dtype: str
    selection: Mapping[str, object] | None
    patches: tuple[PatchSummary, ...]
    num_bytes: int
    base_bytes: int

    @property
    def includes_base(self) -> bool:
        """Whether the slices of the base are there for every weight."""
        return all(patch.includes_base for patch in self.patches)

    @property
    def channels(self) -> int:
        """Number of channels of all weights."""
        return sum(patch.channels for patch in self.patches)

    @property
    def layers(self) -> tuple[LayerSummary, ...]:
        """The weights by the last part of their layer's name."""
        names = dict.fromkeys(patch.layer for patch in self.patches)
        return tuple(_layer(name, [patch for patch in self.patches if patch.layer == name]) for name in names)

    def to_json(self) -> str:
        """Return the summary as indented JSON."""
        fields = asdict(self)
        fields |= {"includes_base": self.includes_base, "channels": self.channels}
        fields |= {"layers": [asdict(layer) for layer in self.layers]}
        return json.dumps(fields, indent=2) + "\n"


def _layer(name: str, patches: list[PatchSummary]) -> LayerSummary:
    sides = {patch.side for patch in patches}
    return LayerSummary(
        layer=name,
        side=sides.pop() if len(sides) == 1 else "mixed",
        weights=len(patches),
        channels=sum(patch.channels for patch in patches),
        most=max(patch.channels for patch in patches),
        size=sum(patch.size for patch in patches),
    )

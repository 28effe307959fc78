"""Summary of an adapter: its weights, channels and bytes, without their values."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

__all__ = ["AdapterSummary", "LayerSummary", "PatchSummary", "layer_names"]

# Bytes of a value.
SIZES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


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
    def entries(self) -> int:
        """Number of the new values."""
        return self.channels * prod(self.shape) // self.size


@dataclass(frozen=True, kw_only=True)
class LayerSummary:
    """The patched weights of layers of one name, in all blocks.

    Attributes:
        layer: their name, as of `layer_names`.
        side: of their channels; "mixed" if they differ.
        weights: number of weights.
        channels: of all weights.
        least: of the weight with fewest of them.
        most: of the weight with most of them.
        size: number of channels of all these weights.
        entries: number of the new values.
    """

    layer: str
    side: str
    weights: int
    channels: int
    least: int
    most: int
    size: int
    entries: int


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

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> AdapterSummary:
        """Make the summary of the content of `s2ft_config.json`."""
        patches = tuple(_patch(name, entry, description["dtype"]) for name, entry in description["weights"].items())
        return cls(
            base_model=description["base_model"],
            base_revision=description["base_revision"],
            dtype=description["dtype"],
            selection=description["selection"],
            patches=patches,
            num_bytes=sum(patch.num_bytes for patch in patches),
            base_bytes=sum(patch.num_bytes for patch in patches if patch.includes_base),
        )

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
        names, groups = layer_names(patch.name for patch in self.patches), defaultdict(list)
        for patch in self.patches:
            groups[names[patch.name]].append(patch)
        return tuple(_layer(name, patches) for name, patches in groups.items())

    @property
    def entries(self) -> int:
        """Number of the new values."""
        return sum(patch.entries for patch in self.patches)

    def to_json(self) -> str:
        """Return the summary as indented JSON."""
        fields = asdict(self)
        fields |= {"includes_base": self.includes_base, "channels": self.channels}
        fields |= {"layers": [asdict(layer) for layer in self.layers]}
        return json.dumps(fields, indent=2) + "\n"


def layer_names(weights: Iterable[str]) -> dict[str, str]:
    """Return for each weight the shortest name of its layer that is the same in all blocks and tells it from others.

    This is the last part, as "down_proj", or a few: "mlp.c_proj" beside "attn.c_proj".
    """
    tails = {weight: _tail(weight) for weight in weights}
    return {weight: _shortest(tail, set(tails.values()) - {tail}) for weight, tail in tails.items()}


def _tail(weight: str) -> tuple[str, ...]:
    """Return the parts of a layer's name behind the last number, which is that of a block or an expert."""
    parts = weight.removesuffix(".weight").split(".")
    start = max((place + 1 for place, part in enumerate(parts) if part.isdigit()), default=0)
    return tuple(parts[start:] or parts)


def _shortest(tail: tuple[str, ...], others: set[tuple[str, ...]]) -> str:
    """Return the fewest last parts with which no other name ends."""
    for start in reversed(range(len(tail))):
        if not any(other[-len(tail[start:]) :] == tail[start:] for other in others):
            return ".".join(tail[start:])
    return ".".join(tail)


def _patch(name: str, entry: Mapping[str, Any], dtype: str) -> PatchSummary:
    rows, columns = entry["shape"]
    size = entry["shape"][entry["dim"]]
    return PatchSummary(
        name=name,
        side=entry["side"],
        shape=(rows, columns),
        channels=entry["channels"],
        size=size,
        num_bytes=entry["channels"] * rows * columns // size * SIZES[dtype],
        includes_base=entry["includes_base"],
    )


def _layer(name: str, patches: list[PatchSummary]) -> LayerSummary:
    sides = {patch.side for patch in patches}
    return LayerSummary(
        layer=name,
        side=sides.pop() if len(sides) == 1 else "mixed",
        weights=len(patches),
        channels=sum(patch.channels for patch in patches),
        least=min(patch.channels for patch in patches),
        most=max(patch.channels for patch in patches),
        size=sum(patch.size for patch in patches),
        entries=sum(patch.entries for patch in patches),
    )

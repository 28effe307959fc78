"""LR_MAPS: maps from alphas to factors on the learning rate."""

from __future__ import annotations

from dataclasses import dataclass

from hf_farms.registries.base import Entry, Registry

__all__ = ["LR_MAPS", "LRMapEntry"]

# Of `lr_factors`, which hands them on.
KEYWORDS = ("min_scale", "max_scale", "released_step")


@dataclass(frozen=True, kw_only=True)
class LRMapEntry(Entry):
    """A map from alphas to factors.

    The function is called with the alphas, finite, above 1 and not all equal, and with the fields of a `FarmsLRConfig`
    that `options` names, as keywords. It returns a positive factor for each alpha.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.needs != "nothing":
            raise ValueError(f"needs must be 'nothing' for a map, which is given alphas, got {self.needs!r}.")
        if not set(self.options) <= set(KEYWORDS):
            raise ValueError(f"options must be among {', '.join(KEYWORDS)}, got {self.options!r}.")


SCALES, SCALES_SENTENCE = ("min_scale", "max_scale"), "scales {min_scale:g} to {max_scale:g}"

LR_MAPS: Registry[LRMapEntry] = Registry(
    "map",
    {
        "linear": LRMapEntry(
            needs="nothing", function="hf_farms.allocation.lr_maps:linear", sentence=SCALES_SENTENCE, options=SCALES
        ),
        "sqrt": LRMapEntry(needs="nothing", function="hf_farms.allocation.lr_maps:sqrt", sentence="mean factor 1"),
        "log2": LRMapEntry(needs="nothing", function="hf_farms.allocation.lr_maps:log2", sentence="mean factor 1"),
        "step": LRMapEntry(
            needs="nothing",
            function="hf_farms.allocation.lr_maps:step",
            sentence=SCALES_SENTENCE,
            options=(*SCALES, "released_step"),
        ),
        "sigmoid": LRMapEntry(
            needs="nothing", function="hf_farms.allocation.lr_maps:sigmoid", sentence=SCALES_SENTENCE, options=SCALES
        ),
    },
)

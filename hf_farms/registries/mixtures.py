"""Mixtures of allocations: names such as `ramp+farms` or `ramp:0.7+farms:0.3`.

A sum reads as what is computed, and needs no quotes in a shell or in YAML. Equal weights are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hf_farms.registries.allocation_entry import AllocationEntry
from hf_farms.registries.base import Registry

__all__ = ["AllocationRegistry", "MixtureEntry", "is_mixture"]

FORM = "a sum of different allocations such as 'ramp+farms', or with weights 'ramp:0.7+farms:0.3'"


@dataclass(frozen=True, kw_only=True)
class MixtureEntry(AllocationEntry):
    """The weighted mean of other allocations.

    Attributes:
        entries: the parts by name.
        weights: their weights by name, which add up to 1.
    """

    entries: Mapping[str, AllocationEntry] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check nothing: the parts are checked entries."""

    @property
    def parts(self) -> Mapping[str, float]:
        """Names and weights of the parts."""
        return self.weights

    @property
    def needs_activations(self) -> bool:
        """Whether a part is planned on calibration data."""
        return any(entry.needs_activations for entry in self.entries.values())

    def describe(self, config: Any) -> str:
        """Return a sentence on the mixture, and those of its parts."""
        if len(set(self.weights.values())) == 1:
            mean = f"the mean of those of {' and '.join(f'`{name}`' for name in self.weights)}"
        else:
            mean = " plus ".join(f"{weight:g} times those of `{name}`" for name, weight in self.weights.items())
        parts = (
            f"`{name}`: {entry.describe(replace(config, allocation=name).settled())}"
            for name, entry in self.entries.items()
        )
        return " ".join((f"Sparsities are {mean}.", *parts, *self._spreads(config)))

    def _spreads(self, config: Any) -> list[str]:
        """Return the sentence on the spreads of the parts, where the config has None for them."""
        spreads = {name: entry.spread for name, entry in self.entries.items() if "spread" in entry.options}
        if config.spread is not None or not spreads:
            return []
        named = " and ".join(f"{spread:g} for `{name}`" for name, spread in spreads.items())
        return [f"Each part has the default of its spread (`null` in the recipe): {named}."]


class AllocationRegistry(Registry[AllocationEntry]):
    """Allocations by name; the name of a mixture gives an entry made of its parts."""

    def __missing__(self, name: object) -> AllocationEntry:
        if not is_mixture(name):
            return super().__missing__(name)  # type: ignore[arg-type]
        weights = _weights(str(name), self)
        entries = {part: self[part] for part in weights}
        needs = {entry.needs for entry in entries.values()}
        if {"windows", "matrix"} <= needs:
            raise _malformed(name, "Its parts need spectra of windows and of whole matrices: choose one of the two.")
        if searching := [part for part, entry in entries.items() if entry.search]:
            raise _malformed(name, f"{searching[0]!r} searches the sparsities itself: use it alone.")
        citations = dict.fromkeys(entry.citation for entry in entries.values() if entry.citation)
        return MixtureEntry(
            needs=next(need for need in ("windows", "matrix", "activations", "nothing") if need in needs),
            function="hf_farms.allocation.plan:weighted_mean",
            sentence="",
            options=tuple(dict.fromkeys(option for entry in entries.values() for option in entry.options)),
            citation="\n".join(citations),
            spread=None,
            entries=entries,
            weights=weights,
        )

    def __contains__(self, name: object) -> bool:
        if not is_mixture(name):
            return super().__contains__(name)
        try:
            return bool(self[str(name)])
        except ValueError:
            return False


def is_mixture(name: object) -> bool:
    """Whether this is written as a mixture, right or wrong."""
    return isinstance(name, str) and any(sign in name for sign in "+:")


def _weights(name: str, known: Mapping[str, AllocationEntry]) -> dict[str, float]:
    """Return the weight of each part.

    Raises:
        ValueError: the name is malformed.
    """
    parts = [part.partition(":") for part in name.split("+")]
    names = [part for part, _, _ in parts]
    unknown = [part for part in names if not dict.__contains__(known, part)]
    if unknown:
        raise _malformed(name, f"{unknown[0]!r} is none of {', '.join(known)}.")
    if len(names) < 2 or len(set(names)) < len(names):
        raise _malformed(name, "Name at least two, each once.")
    if not any(colon for _, colon, _ in parts):
        return dict.fromkeys(names, 1 / len(names))
    try:
        weights = {part: float(weight) for part, _, weight in parts}
    except ValueError:
        raise _malformed(name, "Give every part a number as its weight, or none of them.") from None
    if not all(weight > 0 for weight in weights.values()) or not math.isclose(math.fsum(weights.values()), 1):
        raise _malformed(name, "The weights must be above 0 and add up to 1.")
    return weights


def _malformed(name: object, reason: str) -> ValueError:
    return ValueError(f"allocation must be {FORM}, got {name!r}. {reason}")

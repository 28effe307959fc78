"""COMBINATIONS: rules that make one adapter of several, under the names of PEFT's `add_weighted_adapter`."""

from __future__ import annotations

from dataclasses import dataclass

from hf_farms.registries.base import Entry, Registry

__all__ = ["COMBINATIONS", "CombinationEntry"]


@dataclass(frozen=True, kw_only=True)
class CombinationEntry(Entry):
    """A combination.

    The function is called with `hf_farms.s2ft.adapters.combining.Changes` of one weight, and returns the combined
    change `(u, o)`. Its `options` are the arguments of `fuse` that it reads: density, seed.

    Attributes:
        mean: whether overlapping channels are averaged, which needs positive weights.
    """

    mean: bool = False


COMBINATIONS: Registry[CombinationEntry] = Registry(
    "combination",
    {
        "linear": CombinationEntry(
            needs="nothing",
            function="hf_farms.s2ft.adapters.combining:linear",
            sentence="weighted mean of overlapping channels",
            mean=True,
        ),
        "cat": CombinationEntry(
            needs="nothing", function="hf_farms.s2ft.adapters.combining:cat", sentence="weighted sum of the changes"
        ),
        "magnitude_prune": CombinationEntry(
            needs="nothing",
            function="hf_farms.s2ft.adapters.combining:magnitude_prune",
            sentence="weighted sum of the largest {density} of the changes",
            options=("density",),
        ),
        "ties": CombinationEntry(
            needs="nothing",
            function="hf_farms.s2ft.adapters.combining:ties",
            sentence="TIES of the largest {density} of the changes",
            options=("density",),
        ),
        "dare_linear": CombinationEntry(
            needs="nothing",
            function="hf_farms.s2ft.adapters.combining:dare_linear",
            sentence="weighted sum of {density} of the changes, random and scaled (DARE, seed {seed})",
            options=("density", "seed"),
        ),
        "dare_ties": CombinationEntry(
            needs="nothing",
            function="hf_farms.s2ft.adapters.combining:dare_ties",
            sentence="TIES of {density} of the changes, random and scaled (DARE, seed {seed})",
            options=("density", "seed"),
        ),
    },
)

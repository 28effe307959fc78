"""REFINEMENTS: ways to improve the mask of a method."""

from __future__ import annotations

from dataclasses import dataclass

from hf_farms.registries.base import Entry, Registry

__all__ = ["REFINEMENTS", "RefinementEntry"]


@dataclass(frozen=True, kw_only=True)
class RefinementEntry(Entry):
    """A refinement of the mask of a layer.

    The function is called with the dense weight `(out, in)`, the pruned weight, the
    `hf_farms.pruning.refining.RefinedInputs`, the `Removal`, and the function that refits the kept weights (None where
    the method keeps them as they are); of several processes also with `ranks`. It returns a
    `hf_farms.pruning.methods.PrunedWeight`. An entry that needs "nothing" changes nothing, and its function is not
    called.

    Attributes:
        passes: as of a method.
        citation: BibTeX.
    """

    passes: float = 0.0
    citation: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.needs not in ("nothing", "activations"):
            raise ValueError(f"needs must be 'nothing' or 'activations' for a refinement, got {self.needs!r}.")


REFINEMENTS: Registry[RefinementEntry] = Registry(
    "refine",
    {
        "none": RefinementEntry(needs="nothing", function="hf_farms.pruning.refining:unrefined", sentence=""),
        "swaps": RefinementEntry(
            needs="activations",
            function="hf_farms.pruning.refining:refine_by_swaps",
            passes=8.0,
            sentence="Then a kept and a removed weight of the same row were swapped as long as this reduced the "
            "squared output error of the layer on the calibration data.",
        ),
    },
)

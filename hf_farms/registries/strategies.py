"""STRATEGIES: scores of heads and channels for the selection of S2FT."""

from __future__ import annotations

from dataclasses import dataclass

from hf_farms.registries.base import Entry, Registry

__all__ = ["STRATEGIES", "StrategyEntry"]


@dataclass(frozen=True, kw_only=True)
class StrategyEntry(Entry):
    """A strategy of selection.

    The function is called with a `hf_farms.s2ft.coupled.CoupledModel` and the calibration batches (None where `needs`
    is "nothing" or "matrix"). It returns a score `(units,)`, finite and on the CPU, for each structure of each block;
    `S2FTConfig.keep` selects the largest or the smallest scores.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.needs == "windows":
            raise ValueError("needs must be nothing, matrix, activations or gradients for a strategy, got 'windows'.")

    @property
    def needs_data(self) -> bool:
        """Whether it reads calibration batches."""
        return self.needs in ("activations", "gradients")


BY_NORM = "{strategy}, those of the {keep} norm"

STRATEGIES: Registry[StrategyEntry] = Registry(
    "strategy",
    {
        "random": StrategyEntry(
            needs="nothing",
            function="hf_farms.s2ft.unit_norms:random_scores",
            sentence="random, seed {seed}",
            options=("seed",),
        ),
        "weight": StrategyEntry(
            needs="matrix", function="hf_farms.s2ft.unit_norms:weight_norms", sentence=BY_NORM, options=("keep",)
        ),
        "activation": StrategyEntry(
            needs="activations",
            function="hf_farms.s2ft.unit_norms:activation_norms",
            sentence=BY_NORM,
            options=("keep",),
        ),
        "product": StrategyEntry(
            needs="activations",
            function="hf_farms.s2ft.unit_norms:product_norms",
            sentence=BY_NORM,
            options=("keep",),
        ),
        "gradient": StrategyEntry(
            needs="gradients", function="hf_farms.s2ft.unit_norms:gradient_norms", sentence=BY_NORM, options=("keep",)
        ),
    },
)

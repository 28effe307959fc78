"""FITS: rules for the start of the tail of a spectrum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hf_farms.registries.base import Entry, Registry

__all__ = ["FITS", "FitEntry"]

Precision = Literal["float32", "float64"]


@dataclass(frozen=True, kw_only=True)
class FitEntry(Entry):
    """A rule that fits the tail of a spectrum.

    The function is called with eigenvalues `(b, N)`, ascending and not negative, and a `FarmsConfig`, and returns a
    `hf_farms.spectra.powerlaw.TailFit`.

    Attributes:
        precision: of the eigenvalues. "float64" where the function sees every one of them; "float32" is faster, and
            enough for the upper half of a spectrum.
    """

    precision: Precision = "float64"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.needs != "nothing":
            raise ValueError(f"needs must be 'nothing' for a fit, which is given eigenvalues, got {self.needs!r}.")


FITS: Registry[FitEntry] = Registry(
    "fit",
    {
        "mid": FitEntry(
            needs="nothing",
            function="hf_farms.spectra.powerlaw:fit_mid",
            sentence="The tail starts at eigenvalue N / {tail_divisor:g} of N, in ascending order.",
            options=("tail_divisor",),
            precision="float32",
        ),
        "peak": FitEntry(
            needs="nothing",
            function="hf_farms.spectra.powerlaw:fit_peak",
            sentence="The tail starts where the law fits best (smallest Kolmogorov-Smirnov distance), near the peak of "
            "the histogram of the eigenvalues.",
            options=("released_peak_bound",),
        ),
        "goodness_of_fit": FitEntry(
            needs="nothing",
            function="hf_farms.spectra.powerlaw:fit_goodness",
            sentence="The tail starts where the law fits best (smallest Kolmogorov-Smirnov distance) among all "
            "eigenvalues.",
        ),
    },
)

"""METHODS: rules that choose the weights to remove from a layer."""

from __future__ import annotations

from dataclasses import dataclass

from hf_farms.registries.base import Entry, Registry, check_path

__all__ = ["METHODS", "MethodEntry"]


@dataclass(frozen=True, kw_only=True)
class MethodEntry(Entry):
    """A pruning method.

    The function is called with the weight `(out, in)`, the numbers that `statistic` prepared (None without one) and a
    `Removal`, and the `options` by name, and returns the pruned weight as a new tensor.

    Attributes:
        statistic: import path of the statistic of a layer's inputs, a `hf_farms.pruning.methods.Statistic`; given
            exactly where `needs` is "activations".
        statistic_options: those of `options` that are arguments of the statistic's `prepared` and not of the function.
        adjusts: whether the remaining weights change too.
        refit: import path of a function that is called with the weight, the prepared statistic, a mask of the removed
            weights and the options, and returns the pruned weight; required to refine the mask of a method that
            adjusts, else not allowed.
        ties: import path of a function that is called with the weight, the prepared statistic, the removal and a mask
            of the removed weights, and counts the kept weights that rounding could exchange for a removed one; None if
            the mask depends on more than scores.
        passes: forward passes of the calibration data that take as long as the method, beside the two of a pruning; for
            an estimate of its time.
        shares_rows: whether the function takes `ranks`, and computes rows of each of several processes on its own.
        citation: BibTeX.
    """

    statistic: str | None = None
    statistic_options: tuple[str, ...] = ()
    adjusts: bool = False
    refit: str | None = None
    ties: str | None = None
    passes: float = 0.0
    shares_rows: bool = False
    citation: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.needs not in ("nothing", "activations"):
            raise ValueError(f"needs must be 'nothing' or 'activations' for a pruning method, got {self.needs!r}.")
        if (self.statistic is not None) != (self.needs == "activations"):
            raise ValueError(
                f"statistic must be given exactly where needs is 'activations', got {self.statistic!r} for "
                f"{self.needs!r}."
            )
        if self.statistic is not None:
            check_path("statistic", self.statistic)
        if self.ties is not None:
            check_path("ties", self.ties)
        if self.refit is not None:
            check_path("refit", self.refit)
            if not self.adjusts:
                raise ValueError(f"refit must be None for a method that keeps its weights, got {self.refit!r}.")
        if not set(self.statistic_options) <= set(self.options):
            raise ValueError(f"statistic_options must be some of {self.options}, got {self.statistic_options}.")


WANDA = """\
@inproceedings{sun2024wanda,
  title     = {A Simple and Effective Pruning Approach for Large Language Models},
  author    = {Sun, Mingjie and Liu, Zhuang and Bair, Anna and Kolter, J. Zico},
  booktitle = {International Conference on Learning Representations},
  year      = {2024},
  note      = {arXiv:2306.11695}
}"""
RIA = """\
@inproceedings{zhang2024ria,
  title     = {Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models},
  author    = {Zhang, Yingtao and Bai, Haoli and Lin, Haokun and Zhao, Jialin and Hou, Lu and Cannistraci, Carlo \
Vittorio},
  booktitle = {International Conference on Learning Representations},
  year      = {2024}
}"""
SPARSEGPT = """\
@inproceedings{frantar2023sparsegpt,
  title     = {SparseGPT: Massive Language Models Can be Accurately Pruned in One-Shot},
  author    = {Frantar, Elias and Alistarh, Dan},
  booktitle = {International Conference on Machine Learning},
  year      = {2023},
  note      = {arXiv:2301.00774}
}"""

METHODS: Registry[MethodEntry] = Registry(
    "method",
    {
        "magnitude": MethodEntry(
            needs="nothing",
            function="hf_farms.pruning.magnitude:magnitude",
            sentence="Magnitude pruning: in each row of a weight matrix, the weights of smallest magnitude were set to "
            "zero.",
        ),
        "wanda": MethodEntry(
            needs="activations",
            function="hf_farms.pruning.wanda:wanda",
            statistic="hf_farms.pruning.wanda:InputNorm",
            ties="hf_farms.pruning.wanda:wanda_ties",
            sentence="[Wanda](https://arxiv.org/abs/2306.11695): in each row of a weight matrix, the weights with the "
            "smallest product of magnitude and input norm were set to zero.",
            citation=WANDA,
        ),
        "ria": MethodEntry(
            needs="activations",
            function="hf_farms.pruning.ria:ria",
            statistic="hf_farms.pruning.wanda:InputNorm",
            ties="hf_farms.pruning.ria:ria_ties",
            sentence="[RIA](https://openreview.net/forum?id=Tr0lPx9woF): the weights with the smallest share in the "
            "magnitudes of their row and their column, times the square root of the input norm, were set to zero.",
            citation=RIA,
        ),
        "sparsegpt": MethodEntry(
            needs="activations",
            function="hf_farms.pruning.sparsegpt:sparsegpt",
            passes=1.0,
            statistic="hf_farms.pruning.sparsegpt:InputProducts",
            sentence="[SparseGPT](https://arxiv.org/abs/2301.00774): the weights whose removal changes the output of "
            "their layer least, estimated from the second moments of its inputs, were set to zero, and the remaining "
            "ones were updated to compensate.",
            adjusts=True,
            refit="hf_farms.pruning.sparsegpt:refit",
            options=("damping", "block_size"),
            statistic_options=("damping",),
            shares_rows=True,
            citation=SPARSEGPT,
        ),
    },
)

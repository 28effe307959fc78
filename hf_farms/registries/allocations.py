"""ALLOCATIONS: rules that distribute sparsity across blocks."""

from __future__ import annotations

from dataclasses import dataclass

from hf_farms.registries.base import Entry, Registry, check_path

__all__ = ["ALLOCATIONS", "AllocationEntry"]


@dataclass(frozen=True, kw_only=True)
class AllocationEntry(Entry):
    """A rule that gives each block its sparsity.

    The function is called with a `hf_farms.allocation.plan.BlockScores` and a `PruneConfig`, and returns the sparsity
    of each block. The scores in it depend on `needs`: None for "nothing"; alphas over "windows" or of the whole
    "matrix"; for "activations" one number for each block, from the function `score`.

    Attributes:
        score: import path of a function of a block's `hf_farms.pruning.scoring.MeasuredLayer`s that returns the score
            of the block; required if `needs` is "activations", else not allowed.
        statistic: import path of the statistic of each layer's inputs that `score` reads, a
            `hf_farms.pruning.methods.Statistic`; required with `score`.
        even: every block gets the same sparsity, which a fixed pattern N:M requires.
        sentence_if_even: Markdown for the card instead of `sentence`, if all blocks got the same sparsity.
        citation: BibTeX.
    """

    score: str | None = None
    statistic: str | None = None
    even: bool = False
    sentence_if_even: str = "Every block has the same sparsity."
    citation: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.needs == "gradients":
            raise ValueError(
                "needs must be nothing, windows, matrix or activations for an allocation, got 'gradients'."
            )
        for field in ("score", "statistic"):
            path = getattr(self, field)
            if (path is not None) != (self.needs == "activations"):
                raise ValueError(
                    f"{field} must be given exactly where needs is 'activations', got {path!r} for {self.needs!r}."
                )
            if path is not None:
                check_path(field, path)

    @property
    def needs_spectra(self) -> bool:
        """Whether it is planned on a spectral report."""
        return self.needs in ("windows", "matrix")


ALPHAPRUNING = """\
@inproceedings{lu2024alphapruning,
  title     = {AlphaPruning: Using Heavy-Tailed Self Regularization Theory for Improved Layer-wise Pruning of Large \
Language Models},
  author    = {Lu, Haiquan and Zhou, Yefan and Liu, Shiwei and Wang, Zhangyang and Mahoney, Michael W. and Yang, \
Yaoqing},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2024},
  note      = {arXiv:2410.10912}
}"""
ALPHAS_ALIKE = (
    "Less trained blocks would be pruned more, but the alphas differ by no more than chance, so every block has the "
    "same sparsity."
)

ALLOCATIONS: Registry[AllocationEntry] = Registry(
    "allocation",
    {
        "uniform": AllocationEntry(
            needs="nothing",
            function="hf_farms.allocation.plan:uniform",
            sentence="Every block has the same sparsity.",
            even=True,
            sentence_if_even="Every block has the same sparsity.",
        ),
        "farms": AllocationEntry(
            needs="windows",
            function="hf_farms.allocation.plan:by_score",
            sentence="Less trained blocks are pruned more, as estimated by alpha, the exponent of the tail of their "
            "weight spectra (measured on windows of one shape: [FARMS](https://arxiv.org/abs/2506.06280); mapped to "
            "sparsities as in [AlphaPruning](https://arxiv.org/abs/2410.10912)).",
            sentence_if_even=ALPHAS_ALIKE,
            options=("spread", "shrink", "ends"),
            citation=ALPHAPRUNING,
        ),
        "alpha": AllocationEntry(
            needs="matrix",
            function="hf_farms.allocation.plan:by_score",
            sentence="Less trained blocks are pruned more, as estimated by alpha, the exponent of the tail of their "
            "weight spectra (measured on whole matrices: [AlphaPruning](https://arxiv.org/abs/2410.10912)).",
            sentence_if_even=ALPHAS_ALIKE,
            options=("spread", "shrink", "ends"),
            citation=ALPHAPRUNING,
        ),
    },
)

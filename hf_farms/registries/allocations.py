"""ALLOCATIONS: rules that distribute sparsity across blocks."""

from __future__ import annotations

from hf_farms.registries.allocation_citations import ALPHAPRUNING, ATP, DLP, OWL
from hf_farms.registries.allocation_entry import AllocationEntry
from hf_farms.registries.mixtures import AllocationRegistry

__all__ = ["ALLOCATIONS", "AllocationEntry"]

ALPHAS_ALIKE = (
    "Less trained blocks would be pruned more, but the alphas differ by no more than chance, so every block has the "
    "same sparsity."
)

ALLOCATIONS = AllocationRegistry(
    "allocation",
    {
        "uniform": AllocationEntry(
            needs="nothing",
            function="hf_farms.allocation.sparsity_maps:uniform",
            sentence="Every block has the same sparsity.",
            even=True,
            sentence_if_even="Every block has the same sparsity.",
        ),
        "farms": AllocationEntry(
            needs="windows",
            function="hf_farms.allocation.sparsity_maps:by_score",
            sentence="Less trained blocks are pruned more, as estimated by alpha, the exponent of the tail of their "
            "weight spectra (measured on windows of one shape: [FARMS](https://arxiv.org/abs/2506.06280); mapped to "
            "sparsities as in [AlphaPruning](https://arxiv.org/abs/2410.10912)).",
            sentence_if_even=ALPHAS_ALIKE,
            options=("spread", "shrink", "ends", "granularity"),
            citation=ALPHAPRUNING,
        ),
        "alpha": AllocationEntry(
            needs="matrix",
            function="hf_farms.allocation.sparsity_maps:by_score",
            sentence="Less trained blocks are pruned more, as estimated by alpha, the exponent of the tail of their "
            "weight spectra (measured on whole matrices: [AlphaPruning](https://arxiv.org/abs/2410.10912)).",
            sentence_if_even=ALPHAS_ALIKE,
            options=("spread", "shrink", "ends", "granularity"),
            citation=ALPHAPRUNING,
        ),
        "ramp": AllocationEntry(
            needs="nothing",
            function="hf_farms.allocation.sparsity_maps:by_depth",
            sentence="Sparsity rises linearly with depth ([ATP](https://arxiv.org/abs/2502.14770)).",
            options=("spread",),
            citation=ATP,
        ),
        "owl": AllocationEntry(
            needs="activations",
            function="hf_farms.allocation.sparsity_maps:by_difference",
            score="hf_farms.pruning.outliers:inlier_share",
            statistic="hf_farms.pruning.wanda:InputNorm",
            sentence="Blocks with more outliers (weights whose magnitude times the norm of their input is above five "
            "times the mean of the block) are pruned less ([OWL](https://arxiv.org/abs/2310.05175)).",
            sentence_if_even="Blocks with more outliers would be pruned less, but every block has the same sparsity.",
            # Twice the lambda of the paper, 0.08.
            spread=0.16,
            options=("spread", "ends", "granularity"),
            citation=OWL,
        ),
        "dlp": AllocationEntry(
            needs="activations",
            function="hf_farms.allocation.sparsity_maps:by_difference",
            score="hf_farms.pruning.outliers:median_score",
            statistic="hf_farms.pruning.wanda:InputNorm",
            sentence="Blocks are pruned more, the larger the median of the magnitude of their weights times the norm "
            "of their input ([DLP](https://arxiv.org/abs/2505.23807)).",
            sentence_if_even="Blocks with a larger median score would be pruned more, but every block has the same "
            "sparsity.",
            # Twice the alpha of the paper, 0.15.
            spread=0.3,
            options=("spread", "ends", "granularity"),
            citation=DLP,
        ),
        "sensitivity": AllocationEntry(
            needs="losses",
            function="hf_farms.allocation.sparsity_maps:searched",
            search="hf_farms.search.auto:search_sensitivity",
            sentence="Blocks are pruned more where that changes the predictions of the model less: each block was "
            "pruned alone to several sparsities, and the plan has the lowest sum of KL divergences to the dense model.",
        ),
        "auto": AllocationEntry(
            needs="losses",
            function="hf_farms.allocation.sparsity_maps:searched",
            search="hf_farms.search.auto:search_auto",
            sentence="The sparsities of the blocks were searched: other allocations, mixtures of them and changes of "
            "the best were compared by the KL divergence of the pruned to the dense model on a selection text.",
            sentence_if_stopped="The sparsities of the blocks were searched, and a time limit ended the search early: "
            "the plans tried until then were compared by the KL divergence of the pruned to the dense model on a "
            "selection text.",
            options=("shrink", "ends", "minutes", "spectra"),
        ),
    },
)

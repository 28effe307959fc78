"""Options of pruning."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from hf_farms.config.checks import check, check_choice, check_fields, check_ranges
from hf_farms.config.ends import DEFAULT_ENDS, EARLIER_ENDS, ENDS, Ends
from hf_farms.config.patterns import UNSTRUCTURED, check_pattern, group_of
from hf_farms.config.prune_ranges import RANGES
from hf_farms.config.renamed import absent_before, renamed
from hf_farms.config.spectra import FarmsConfig
from hf_farms.files.moved_names import moved
from hf_farms.registries import ALLOCATIONS, METHODS, RECOVERIES, REFINEMENTS
from hf_farms.registries.mixtures import is_mixture

__all__ = [
    "ALLOCATIONS",
    "METHODS",
    "RECOVERIES",
    "REFINEMENTS",
    "Allocation",
    "Method",
    "PruneConfig",
    "Recover",
    "Refine",
]

# Names, as they are registered when a config is made.
Method = Annotated[str, METHODS]
Allocation = Annotated[str, ALLOCATIONS]
Recover = Annotated[str, RECOVERIES]
Refine = Annotated[str, REFINEMENTS]
Granularity = Literal["block", "layer"]

GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)

# Of versions without these options; also the defaults of "none", so that they are no change.
EARLIER_PASSES, EARLIER_RATE = 3, 0.01

CHOICES: dict[str, Collection[str]] = {
    "method": METHODS,
    "granularity": GRANULARITIES,
    "refine": REFINEMENTS,
    "ends": ENDS,
    "recover": RECOVERIES,
}


@absent_before(
    ends=EARLIER_ENDS,
    granularity="block",
    damping=0.01,
    block_size=128,
    refine="none",
    recover="none",
    recover_passes=EARLIER_PASSES,
    recover_rate=EARLIER_RATE,
    recover_budget=None,
    minutes=None,
)
@renamed(farms="spectra")
@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """Options of pruning: sparsity, method, pattern and allocation.

    Attributes:
        sparsity: fraction of the weights of the pruned layers that become zero, in [0, 1); met to the weight. Start at
            0.5 or lower: quality falls quickly above it.
        method: "wanda" (|W| times the norm of the layer's input, arXiv 2306.11695) needs calibration data and one pass
            over it. "ria" (ICLR 2024) costs the same: the share of |W| in its row and column, times the square root of
            the norm; try it where some inputs are very large. "sparsegpt" (arXiv 2301.00774) also updates the remaining
            weights: slower, more memory. "magnitude" (|W|) needs no data and loses most quality.
        pattern: where zeros may be. "unstructured" allows them anywhere and keeps most quality. Choose "2:4" (or
            another "N:M": keep N of every M consecutive weights) for hardware that accelerates it; "N:8", with the
            letter, chooses N for each block (AlphaPruning) and needs a sparsity that groups of 8 can come near to.
        allocation: how sparsity is distributed over blocks. "farms" prunes badly trained blocks more, by alpha over
            windows; "alpha" is the same map on whole matrices (AlphaPruning, arXiv 2410.10912), slower to measure.
            "ramp" prunes deeper blocks more (ATP, arXiv 2502.14770) and measures nothing. "owl" prunes blocks with
            outliers less (arXiv 2310.05175), "dlp" blocks with a low median score (arXiv 2505.23807); both need
            calibration data and a pass over it. "sensitivity" prunes each block alone and adds up the losses; "auto"
            compares all allocations, mixtures of them and changes of the best on a selection text, which takes many
            times as long. After a recovery by submodule, `prune_checkpoint` compares the plan of both with its uniform
            baseline, and the better one is the result; `prune` of a model in memory keeps the plan.
            "uniform" measures nothing and is the baseline. The default is "farms", and "uniform" where a recovery
            follows: on SmolLM2 no other was better then, with text that the model writes. The config and its copies
            hold the name. A sum such as "ramp+farms" is the mean of several, "ramp:0.7+farms:0.3" one with weights: try
            it where two of them help.
        spread: how far block sparsities may lie apart. None is the default of the allocation, and in a mixture that of
            each part. "farms", "alpha" and "ramp" (0.1): within (1 - spread) / (1 + spread) of each other, whatever the
            total is. "owl" (0.16) and "dlp" (0.3): the difference between the highest and the lowest, as published,
            twice their lambda and alpha of 0.08 and 0.15. At a total of 0.5 both meanings agree. Raise it for high
            sparsity; 0 is uniform.
        shrink: reduce the spread when the block scores differ by little more than noise. Turn it off only to reproduce
            published numbers.
        ends: how the first and the last block enter the map from alphas or other scores: in healthy models too, theirs
            differ from the others. "lowest" and "median" replace their score by the lowest or the median of the others;
            "apart" leaves them at the total sparsity; "first-lowest", "first-median" and "first-apart" change the first
            block only; "first-capped" is "first-lowest" unless the first block has the lowest score by itself or there
            are fewer than three blocks; "measured": like all blocks. In an encoder-decoder the first block is the
            encoder's. Change it to "measured" to reproduce published numbers.
        granularity: "block" gives all layers of a block one sparsity; "layer" gives each role (q, k, ..., down) its
            own map over blocks with the same total, so that alphas and scores are compared within a role only. Change
            it if the roles of a model differ in which blocks are badly trained.
        damping: what SparseGPT adds to the diagonal of the Hessian, in units of its mean. Raise it to 0.1 for little
            calibration data, or where weights become very large.
        block_size: columns whose weights SparseGPT compares at once. Smaller blocks spread the zeros more evenly over
            the columns; the papers use 128.
        refine: "swaps" improves the mask of any method: in each row, a kept and a removed weight are swapped while this
            reduces the output error of the layer, and after SparseGPT the kept weights are refitted. Choose it for the
            best quality without training; it needs calibration data and the memory of SparseGPT (twice that with
            SparseGPT), and takes several times as long as SparseGPT.
        max_sparsity: upper limit for one block, or one role in it. Where the total is higher, the total is the limit,
            with a warning. Lower it if single blocks collapse.
        recover: how the kept weights are adjusted after pruning, with the zeros fixed. "submodule" fits attention and
            MLP of each block to the hidden states of the dense model (arXiv 2510.14444): slower, and needs calibration
            data with every method; choose it where quality counts more than minutes. A fit is kept where it is closer
            on a selection text, or without one on calibration sequences that are held out. "distill" does the same, and
            then trains all kept weights together to predict as the dense model does: slower still, in the memory of
            full fine-tuning, for causal language models that are not streamed. "none" keeps the weights that the method
            left.
        recover_passes: passes of the fit over the calibration data; None is the default of the recovery, 2 for the
            training of "distill", and for "submodule" 6 over up to 32 sequences, with more of them fewer, to 2 over 96
            or more. With "distill" it counts for the training only: blocks are fitted before with the default of
            "submodule". Time grows in proportion: lower it where that counts. With more of the data rather than more
            passes, less of it is learned by heart.
        recover_rate: largest learning rate of the fit, as a fraction of the root mean square of each matrix; None is
            the default of the recovery, 0.01 for "submodule" and 0.0003 for "distill", where it counts for the training
            only. Lower it if the report says that weights were left as they were.
        recover_budget: fraction of the parameters of the model that "distill" trains, in heads and channels that S2FT
            selects at random. None trains all kept weights of the pruned layers. Set it where their gradients and
            moments do not fit into memory; less is recovered.
        minutes: stop the search of "auto" after this time, with the best plan so far. None does all of the work, so
            that the result does not depend on the speed of the machine. Set it where the whole search takes too long.
            An interrupted search continues with another limit too.
        spectra: how spectra are measured. Change it for another window size or fit; see `FarmsConfig`.
    """

    sparsity: float = 0.5
    method: Method = "wanda"
    pattern: str = UNSTRUCTURED
    # None, which is no value of a config, becomes one of two names.
    allocation: Allocation = None  # type: ignore[assignment]
    spread: float | None = None
    shrink: bool = True
    ends: Ends = DEFAULT_ENDS
    granularity: Granularity = "block"
    damping: float = 0.01
    block_size: int = 128
    refine: Refine = "none"
    max_sparsity: float = 0.999
    recover: Recover = "none"
    recover_passes: int | None = None
    recover_rate: float | None = None
    recover_budget: float | None = None
    minutes: float | None = None
    spectra: FarmsConfig = field(default_factory=FarmsConfig)

    def __post_init__(self) -> None:
        check_ranges(self, RANGES)
        for name, choices in CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        if self.allocation is None:
            object.__setattr__(self, "allocation", "uniform" if self.recovers else "farms")
        if is_mixture(self.allocation):
            ALLOCATIONS[self.allocation]  # raises for a malformed one
        else:
            check_choice("allocation", self.allocation, ALLOCATIONS)
        check(
            REFINEMENTS[self.refine].needs == "nothing"
            or METHODS[self.method].refit is not None
            or not METHODS[self.method].adjusts,
            "refine",
            f"'none' for method {self.method!r}, which updates the kept weights and cannot refit them",
            self.refine,
        )
        check_pattern(self.pattern, sparsity=self.sparsity, allocation=self.allocation)
        check_fields(self)

    @property
    def group(self) -> tuple[int | None, int] | None:
        """N (None: each block has its own) and M of a pattern N:M; None for unstructured zeros."""
        return group_of(self.pattern)

    @property
    def effective_spread(self) -> float:
        """The spread as a number, the default of the allocation in place of None; not for a mixture without one."""
        spread = self.settled().spread
        assert spread is not None, "a mixture has no spread but that of its parts"
        return spread

    def passes_over(self, sequences: int) -> int:
        """Return the passes of the recovery over a number of sequences, its default in place of None."""
        return self.recover_passes or RECOVERIES[self.recover].default_passes(sequences)

    @property
    def effective_rate(self) -> float:
        """The learning rate of the recovery, its default in place of None."""
        return RECOVERIES[self.recover].rate if self.recover_rate is None else self.recover_rate

    def settled(self, sequences: int = 1) -> PruneConfig:
        """Return the config with the numbers of defaults, as recipes and reports hold them: defaults may change.

        A mixture keeps None for its spread, which stands for the default of each part.

        Args:
            sequences: of the calibration data.
        """
        spread = ALLOCATIONS[self.allocation].spread if self.spread is None else self.spread
        passes = self.passes_over(sequences)
        return replace(self, spread=spread, recover_passes=passes, recover_rate=self.effective_rate)

    def unsettled(self, sequences: int = 1) -> PruneConfig:
        """Return the config with None in place of the numbers of defaults; argument as of `settled`."""
        options = ("spread", "recover_passes", "recover_rate")
        defaults = replace(self, **dict.fromkeys(options)).settled(sequences)  # type: ignore[arg-type]
        same = [name for name in options if getattr(self, name) == getattr(defaults, name)]
        return replace(self, **dict.fromkeys(same))  # type: ignore[arg-type]

    @property
    def needs_calibration(self) -> bool:
        """Whether the method, the refinement, the allocation or the recovery measures activations."""
        return self.measures_inputs or ALLOCATIONS[self.allocation].needs_activations or self.recovers

    @property
    def measures_inputs(self) -> bool:
        """Whether the inputs of the layers are measured while they are pruned."""
        return "activations" in (METHODS[self.method].needs, REFINEMENTS[self.refine].needs)

    @property
    def recovers(self) -> bool:
        """Whether the kept weights are fitted on calibration data after pruning."""
        return RECOVERIES[self.recover].needs == "activations"

    @property
    def trains(self) -> bool:
        """Whether the recovery trains the whole pruned model, which must be in memory."""
        return RECOVERIES[self.recover].first is not None

    @property
    def needs_selection(self) -> bool:
        """Whether the allocation is chosen, or the recovery accepted, on a selection text."""
        return self.searches or self.recovers

    @property
    def searches(self) -> bool:
        """Whether the allocation is chosen by losses on a selection text."""
        return ALLOCATIONS[self.allocation].needs == "losses"

    def measurement(self) -> FarmsConfig:
        """Return the spectral measurement that this allocation is planned on."""
        return self.spectra.whole_matrix() if ALLOCATIONS[self.allocation].needs == "matrix" else self.spectra


if not TYPE_CHECKING:  # also for pickles of earlier versions
    _MOVED = {name: f"hf_farms.config.{name}" for name in ("CalibrationConfig", "EvaluationConfig")}
    __getattr__ = moved(__name__, _MOVED)

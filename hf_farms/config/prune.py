"""Options of pruning, calibration and evaluation."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, get_args

from hf_farms.config.checks import check, check_choice, check_fields, is_count, is_number, is_seed
from hf_farms.config.ends import DEFAULT_ENDS, EARLIER_ENDS, ENDS, Ends
from hf_farms.config.renamed import absent_before, renamed
from hf_farms.config.spectra import FarmsConfig
from hf_farms.files.paths import folder_name
from hf_farms.registries import ALLOCATIONS, METHODS, RECOVERIES, REFINEMENTS
from hf_farms.registries.mixtures import is_mixture

__all__ = [
    "ALLOCATIONS",
    "METHODS",
    "RECOVERIES",
    "REFINEMENTS",
    "Allocation",
    "CalibrationConfig",
    "EvaluationConfig",
    "Method",
    "PruneConfig",
    "Recover",
    "Refine",
    "default_output_name",
]

# Names, as they are registered when a config is made.
Method = Annotated[str, METHODS]
Allocation = Annotated[str, ALLOCATIONS]
Recover = Annotated[str, RECOVERIES]
Refine = Annotated[str, REFINEMENTS]
Granularity = Literal["block", "layer"]

GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)

UNSTRUCTURED = "unstructured"
RECOVER_PASSES, RECOVER_RATE = 3, 0.01
PATTERN = re.compile(rf"{UNSTRUCTURED}|(N|[1-9]\d*):[1-9]\d*")


@absent_before(
    ends=EARLIER_ENDS,
    granularity="block",
    damping=0.01,
    block_size=128,
    refine="none",
    recover="none",
    recover_passes=RECOVER_PASSES,
    recover_rate=RECOVER_RATE,
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
            times as long. "uniform" measures nothing and is the baseline. A sum such as "ramp+farms" is the mean of
            several, "ramp:0.7+farms:0.3" one with weights: try it where two of them help.
        spread: how far block sparsities may lie apart. None is the default of the allocation. "farms", "alpha" and
            "ramp" (0.1): within (1 - spread) / (1 + spread) of each other, whatever the total is. "owl" (0.16) and
            "dlp" (0.3): the difference between the highest and the lowest, as published, twice their lambda and alpha
            of 0.08 and 0.15. At a total of 0.5 both meanings agree. Raise it for high sparsity; 0 is uniform.
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
            data with every method; choose it where quality counts more than minutes. "none" keeps the weights that the
            method left.
        recover_passes: passes of the fit over the calibration data. Time grows in proportion. With more of the data
            rather than more passes, less of it is learned by heart.
        recover_rate: first learning rate of the fit, as a fraction of the root mean square of each matrix. Lower it if
            the report says that weights were left as they were.
        minutes: stop the search of "auto" after this time, with the best plan so far. None does all of the work, so
            that the result does not depend on the speed of the machine. Set it where the whole search takes too long.
        spectra: how spectra are measured. Change it for another window size or fit; see `FarmsConfig`.
    """

    sparsity: float = 0.5
    method: Method = "wanda"
    pattern: str = UNSTRUCTURED
    allocation: Allocation = "farms"
    spread: float | None = None
    shrink: bool = True
    ends: Ends = DEFAULT_ENDS
    granularity: Granularity = "block"
    damping: float = 0.01
    block_size: int = 128
    refine: Refine = "none"
    max_sparsity: float = 0.999
    recover: Recover = "none"
    recover_passes: int = RECOVER_PASSES
    recover_rate: float = RECOVER_RATE
    minutes: float | None = None
    spectra: FarmsConfig = field(default_factory=FarmsConfig)

    def __post_init__(self) -> None:
        check(
            is_number(self.sparsity) and 0 <= self.sparsity < 1,
            "sparsity",
            "at least 0 and below 1",
            self.sparsity,
            "It is a fraction: 0.5 removes half of the weights.",
        )
        check_choice("method", self.method, METHODS)
        if is_mixture(self.allocation):
            ALLOCATIONS[self.allocation]  # raises for a malformed one
        else:
            check_choice("allocation", self.allocation, ALLOCATIONS)
        check_choice("granularity", self.granularity, GRANULARITIES)
        check_choice("refine", self.refine, REFINEMENTS)
        check(
            REFINEMENTS[self.refine].needs == "nothing"
            or METHODS[self.method].refit is not None
            or not METHODS[self.method].adjusts,
            "refine",
            f"'none' for method {self.method!r}, which updates the kept weights and cannot refit them",
            self.refine,
        )
        self._check_pattern()
        check(
            self.spread is None or (is_number(self.spread) and 0 <= self.spread < 1),
            "spread",
            "None, or at least 0 and below 1",
            self.spread,
        )
        check_choice("ends", self.ends, ENDS)
        check(is_number(self.damping) and 0 < self.damping < math.inf, "damping", "a positive number", self.damping)
        check(is_count(self.block_size), "block_size", "a positive integer", self.block_size)
        check(
            is_number(self.max_sparsity) and 0 < self.max_sparsity <= 1,
            "max_sparsity",
            "above 0 and at most 1",
            self.max_sparsity,
        )
        check_choice("recover", self.recover, RECOVERIES)
        check(is_count(self.recover_passes), "recover_passes", "a positive integer", self.recover_passes)
        check(
            is_number(self.recover_rate) and 0 < self.recover_rate <= 1,
            "recover_rate",
            "above 0 and at most 1",
            self.recover_rate,
            "It is a fraction of the size of the weights.",
        )
        check(
            self.minutes is None or (is_number(self.minutes) and 0 < self.minutes < math.inf),
            "minutes",
            "None or above 0",
            self.minutes,
        )
        check_fields(self)

    def _check_pattern(self) -> None:
        ok = isinstance(self.pattern, str) and PATTERN.fullmatch(self.pattern) is not None
        check(ok, "pattern", "'unstructured', 'N:M' with two numbers such as '2:4', or such as 'N:8'", self.pattern)
        if self.group is None:
            return
        kept, size = self.group
        if kept is None:
            most = (size - 1) / size
            check(size > 1, "pattern", "groups of at least 2 weights", self.pattern)
            check(self.sparsity <= most, "sparsity", f"at most {most:.4g} for pattern {self.pattern!r}", self.sparsity)
            return
        check(kept < size, "pattern", "N:M with N below M", self.pattern, "N of every M weights stay.")
        right = (size - kept) / size
        check(
            math.isclose(self.sparsity, right, abs_tol=5e-5),
            "sparsity",
            f"{right:.4g} for pattern {self.pattern!r}",
            self.sparsity,
            f"{kept} of every {size} weights stay.",
        )
        check(
            ALLOCATIONS[self.allocation].even,
            "allocation",
            f"'uniform' for pattern {self.pattern!r}",
            self.allocation,
            f"Say `allocation='uniform'`, or `pattern='N:{size}'`, under which blocks may differ.",
        )

    @property
    def group(self) -> tuple[int | None, int] | None:
        """N (None: each block has its own) and M of a pattern N:M; None for unstructured zeros."""
        if self.pattern == UNSTRUCTURED:
            return None
        kept, size = self.pattern.split(":")
        return None if kept == "N" else int(kept), int(size)

    @property
    def effective_spread(self) -> float:
        """The spread as a number, the default of the allocation in place of None; not for a mixture without one."""
        spread = self.settled().spread
        assert spread is not None, "a mixture has no spread but that of its parts"
        return spread

    def settled(self) -> PruneConfig:
        """Return the config with the number of the default spread, as recipes and reports hold it: it may change.

        A mixture keeps None, which stands for the default of each part.
        """
        return self if self.spread is not None else replace(self, spread=ALLOCATIONS[self.allocation].spread)

    @property
    def needs_calibration(self) -> bool:
        """Whether the method, the refinement, the allocation or the recovery measures activations."""
        return (
            self.measures_inputs
            or ALLOCATIONS[self.allocation].needs_activations
            or RECOVERIES[self.recover].needs == "activations"
        )

    @property
    def measures_inputs(self) -> bool:
        """Whether the inputs of the layers are measured while they are pruned."""
        return "activations" in (METHODS[self.method].needs, REFINEMENTS[self.refine].needs)

    @property
    def needs_selection(self) -> bool:
        """Whether the allocation is chosen on a selection text."""
        return ALLOCATIONS[self.allocation].needs == "losses"

    def measurement(self) -> FarmsConfig:
        """Return the spectral measurement that this allocation is planned on."""
        return self.spectra.whole_matrix() if ALLOCATIONS[self.allocation].needs == "matrix" else self.spectra


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """The sequences that activations are measured on.

    Attributes:
        source: "speeches" (public-domain English text inside the package), "self" (sampled from the model itself, for
            other languages), a text file, a table (JSON, JSON lines, CSV, TSV, parquet, Arrow; each also as .gz, .bz2
            or .xz), or the id of a dataset on the Hub. Text of the kind that the model will be used on gives the best
            result.
        column: column that holds the text, for tables and datasets.
        subset: configuration of a Hub dataset ("en" of allenai/c4). None takes the default one.
        split: split of a Hub dataset. Keep it apart from the split that you evaluate on.
        num_sequences: number of sequences. The papers use 128; time and memory for hidden states grow with it.
        sequence_length: tokens in each, lowered to the context length of the model. Longer sequences cost time and
            memory in proportion.
        seed: of the choice of passages, or of the sampling. Change it to see how much the choice of data matters.
    """

    source: str = "speeches"
    column: str = "text"
    subset: str | None = None
    split: str = "train"
    num_sequences: int = 32
    sequence_length: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        _check_text(self.source, "calibration source", "'speeches', 'self', a file or a dataset id")
        _check_text(self.column, "column", "the name of a column")
        _check_text(self.split, "split", "the name of a split")
        check(is_count(self.num_sequences), "num_sequences", "a positive integer", self.num_sequences)
        check(
            isinstance(self.sequence_length, int) and self.sequence_length >= 2,
            "sequence_length",
            "an integer of at least 2",
            self.sequence_length,
        )
        check(is_seed(self.seed), "seed", "an integer of at least 0", self.seed)
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The text that perplexity is measured on.

    Attributes:
        source: "speeches" (held-out public-domain text inside the package), a file or a dataset, as for calibration.
            None skips the evaluation and saves a pass over the text for each model.
        column: column that holds the text, for tables and datasets.
        subset: configuration of a Hub dataset. None takes the default one.
        split: split of a Hub dataset. Use one that the model was neither calibrated nor trained on.
        context_length: tokens in a window, lowered to the context length of the model. Perplexities of different
            lengths do not compare; the papers use 2048.
        max_windows: number of windows from the start of the text. Fewer are faster and less exact; None takes all.
    """

    source: str | None = "speeches"
    column: str = "text"
    subset: str | None = None
    split: str = "test"
    context_length: int = 512
    max_windows: int | None = 40

    def __post_init__(self) -> None:
        check(
            isinstance(self.context_length, int) and self.context_length >= 2,
            "context_length",
            "an integer of at least 2",
            self.context_length,
        )
        check(
            self.max_windows is None or is_count(self.max_windows),
            "max_windows",
            "None or a positive integer",
            self.max_windows,
        )
        if self.source is not None:
            _check_text(self.source, "evaluation source", "'speeches', a file, a dataset id or None")
        _check_text(self.column, "column", "the name of a column")
        _check_text(self.split, "split", "the name of a split")
        check_fields(self)


def _check_text(value: object, name: str, constraint: str) -> None:
    check(isinstance(value, str) and value.strip() != "", name, constraint, value)


def default_output_name(model: str, config: PruneConfig) -> str:
    """Return the name of the folder and repository of a pruned model, such as `Llama-2-7b-farms-wanda-50-2of4`.

    Args:
        model: hub id, folder or `demo`.
        config: gives allocation, method, refinement, sparsity and pattern.
    """
    name = folder_name(model.replace("\\", "/")) or "model"
    pattern = "" if config.group is None else "-" + config.pattern.replace(":", "of")
    # A mixture without the signs that names of repositories and folders cannot have: ramp0.7-farms0.3.
    allocation = config.allocation.replace(":", "").replace("+", "-")
    refined = "" if config.refine == "none" else f"-{config.refine}"
    return f"{name}-{allocation}-{config.method}{refined}-{_percent(config.sparsity)}{pattern}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.4g}"

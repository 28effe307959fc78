"""Does pruning badly trained blocks more help, and what about the first and last block? On the models of planted.py.

    python tests/benchmarks/planted_pruning.py FOLDER [--part I/N]            # goes on where it stopped
    python tests/benchmarks/planted_pruning.py FOLDER --report
    python tests/benchmarks/planted_pruning.py FOLDER --model DIR --calibration FILE --text FILE [--ends ...]

Written before any of it was run. **Models**: the ten with two blocks inserted late (`acting-*-late`; families 600 to
604 choose, 605 to 609 confirm), and the longer trained pairs (`long-700` chooses, `long-701` confirms). **Pruning**:
Wanda, 32 calibration sequences of 256 tokens, sparsity 0.5, 0.6, 0.7, spread 0.1 and 0.3, by `hf_farms.prune`.
**Allocations**: `uniform`; `farms`; `alpha`; `norm` (score: - mean Frobenius norm over roles); `deranged` (the scores
of `farms`, no block with its own, seeded by the family); `oracle` (planted blocks 1, others 0), all by the map of
`farms`, each with every value of `ends`. **Measure**: NLL on 64 windows of the select text to choose and of the test
text to confirm, minus that of `uniform` at the same sparsity: mean over models and its standard error, paired by model.
Plans that are equal to four digits are pruned once. A model folder (`--model`) has no oracle, and its error is paired
over windows. A pruning and its evaluation take 1.5 core-seconds; to stay below an hour, the planted models are pruned
at 50 and 60% with `uniform` and `farms` only. Added after "first-lowest" lost on SmolLM2-135M, whose first block has
the lowest alpha: "first-capped", which is "first-lowest" for the planted models and "measured" for SmolLM2.

**Predictions.**
1. Inserted blocks, 70%, spread 0.3: `farms` measured loses (above +0.05); "first-lowest" and "lowest" gain (below
   -0.05); "first-median" and "median" gain less; "first-apart" and "apart" gain least.
2. Rules for both ends and for the first alone differ by less than 0.02 at spread 0.1.
3. Oracle gains more than any arm of `farms`; `norm` with "first-lowest" gains as much as `farms` with it.
4. Deranged loses in the mean, at 70% and spread 0.3 by more than 0.05.
5. At 50% and spread 0.1 no mean difference exceeds 0.02.
6. In the healthy long models no rule gains or loses more than 0.02 at spread 0.1.
7. SmolLM2-135M, whose first block has the lowest alpha: "first-lowest" is as measured within 0.01, "median" loses.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import planted_jobs
import planted_pruning_report
import torch
from planted_models import windows
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from hf_farms import PruneConfig, SpectralReport, analyze, plan_sparsity, prune
from hf_farms.config import CalibrationConfig
from hf_farms.config.ends import ENDS
from hf_farms.data.calibration import calibration_sequences
from hf_farms.demo import demo_model

# The most telling first.
SPARSITIES, SPREADS = (0.7, 0.6, 0.5), (0.3, 0.1)
# Where planted models are pruned with all allocations.
ALL_AT = 0.7
SCORED = ("farms", "alpha", "norm", "deranged", "oracle")
CONTEXT = 512


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One pruning of a model."""

    sparsity: float
    allocation: str
    spread: float = 0.0
    ends: str = "measured"

    @property
    def config(self) -> PruneConfig:
        """Options of the real pruner; placebos are `farms` with other scores."""
        if self.allocation == "uniform":
            return PruneConfig(sparsity=self.sparsity, allocation="uniform")
        allocation = "alpha" if self.allocation == "alpha" else "farms"
        return PruneConfig(sparsity=self.sparsity, allocation=allocation, spread=self.spread, ends=self.ends)  # type: ignore[arg-type]


@dataclass(kw_only=True)
class Subject:
    """A model to prune, its texts, and the results by plan."""

    name: str
    model: PreTrainedModel
    tokenizer: Any
    calibration: CalibrationConfig
    text: Tensor
    planted: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        # NLL of each window by plan.
        self.results: dict[tuple[float, ...], list[float]] = {}
        self.weights = {name: value.clone() for name, value in self.model.state_dict().items()}

    @cached_property
    def batches(self) -> list[Tensor]:
        """Calibration sequences, the same for every arm."""
        sequences = calibration_sequences(self.calibration, model=self.model, tokenizer=self.tokenizer)[0]
        return [part for batch in sequences for part in batch.split(16)]

    @cached_property
    def spectra(self) -> dict[str, SpectralReport]:
        """Reports of the dense model, by allocation."""
        self.model.load_state_dict(self.weights)
        farms = analyze(self.model, PruneConfig().measurement())
        alpha = analyze(self.model, PruneConfig(allocation="alpha").measurement())
        norms = [_norm(block) for block in alpha.blocks]
        order = _derangement(len(farms.blocks), self.seed)
        oracle = [float(index in self.planted) for index in range(len(farms.blocks))]
        deranged = [farms.blocks[i] for i in order]
        return {
            "farms": farms,
            "alpha": alpha,
            "norm": _with_scores(farms, [-norm for norm in norms], None),
            "deranged": _with_scores(farms, [b.alpha for b in deranged], [b.alpha_stderr for b in deranged]),
            "oracle": _with_scores(farms, oracle, None),
        }

    def nll(self, arm: Arm) -> tuple[list[float], list[float]]:
        """Return the block sparsities that were planned, and the NLL of each window after pruning."""
        spectra = self.spectra[arm.allocation] if arm.allocation != "uniform" else self.spectra["farms"]
        plan = plan_sparsity(spectra, config=arm.config)
        key = rounded(plan)
        if key not in self.results:
            self.model.load_state_dict(self.weights)
            prune(self.model, arm.config, calibration=self.batches, spectra=spectra)
            self.results[key] = _losses(self.model, self.text)
        return plan, self.results[key]


def rounded(plan: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(sparsity, 4) for sparsity in plan)


def _norm(block: Any) -> float:
    """Mean over roles of the mean Frobenius norm."""
    roles = defaultdict(list)
    for layer in block.layers:
        roles[layer.role].append(math.sqrt(layer.frobenius_norm_sq))
    return statistics.fmean(statistics.fmean(norms) for norms in roles.values())


def _derangement(count: int, seed: int) -> list[int]:
    generator, order = random.Random(seed), list(range(count))
    while any(i == position for position, i in enumerate(order)):
        generator.shuffle(order)
    return order


def _with_scores(report: SpectralReport, scores: list[Any], errors: list[Any] | None) -> SpectralReport:
    blocks = zip(report.blocks, scores, errors or [None] * len(scores), strict=True)
    return replace(report, blocks=tuple(replace(b, alpha=score, alpha_stderr=error) for b, score, error in blocks))


@torch.no_grad()
def _losses(model: PreTrainedModel, text: Tensor) -> list[float]:
    """NLL for each token of each window."""
    found = []
    for part in text.split(4):
        logits = model(input_ids=part, use_cache=False).logits[:, :-1]
        losses = logits.logsumexp(-1) - logits.gather(-1, part[:, 1:, None])[..., 0]
        found += losses.double().mean(1).tolist()
    return found


def arms(sparsity: float, spread: float, options: argparse.Namespace, subject: Subject) -> Iterator[Arm]:
    """One part of the grid; `uniform` first, which the others are compared with."""
    yield Arm(sparsity=sparsity, allocation="uniform")
    for allocation, ends in product(options.allocations, options.ends):
        known = allocation != "oracle" or subject.planted
        if known and (allocation == "farms" or sparsity == ALL_AT or options.model is not None):
            yield Arm(sparsity=sparsity, allocation=allocation, spread=spread, ends=ends)


def planted_subjects(options: argparse.Namespace) -> Iterator[Subject]:
    """The models of the benchmark that are trained."""
    plans = [plan for plan in planted_jobs.all_plans() if plan.group in ("acting", "long") and plan.family != 0]
    trained = planted_jobs.trained_rows(options.folder)
    part, parts = map(int, options.part.split("/"))
    tokenizer = AutoTokenizer.from_pretrained(demo_model())
    for plan in sorted(plans[part - 1 :: parts], key=lambda plan: plan.group):
        split = "test" if plan.family in planted_pruning_report.CONFIRMATION else "select"
        if plan.name in trained:
            yield Subject(
                name=plan.name,
                model=planted_jobs.load(options.folder, plan),
                tokenizer=tokenizer,
                calibration=CalibrationConfig(num_sequences=options.sequences, sequence_length=256),
                text=windows(split, options.windows),
                planted=tuple(plan.planted),
                seed=plan.family,
            )


def real_subject(options: argparse.Namespace) -> Subject:
    """The model of a folder."""
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    ids = tokenizer(options.text.read_text(encoding="utf-8"), verbose=False)["input_ids"]
    text = torch.tensor(ids[: len(ids) // CONTEXT * CONTEXT]).view(-1, CONTEXT)[: options.windows]
    return Subject(
        name=f"{options.model.name} on {options.text.name}",
        model=AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval(),
        tokenizer=tokenizer,
        calibration=CalibrationConfig(
            source=str(options.calibration), num_sequences=options.sequences, sequence_length=256
        ),
        text=text,
    )


def run(subject: Subject, missing: Iterator[Arm], options: argparse.Namespace, done: set[tuple[Any, ...]]) -> None:
    """Prune with every arm that is missing."""
    for row in planted_jobs.json_lines(options.output):
        if row["model"] == subject.name:
            subject.results[tuple(row["plan"])] = row["nll"]
    for arm in missing:
        row: dict[str, Any] = {"model": subject.name, **vars(arm)}
        key = tuple(row.values())
        if key in done:
            continue
        done.add(key)
        start = time.perf_counter()
        plan, losses = subject.nll(arm)
        seconds = time.perf_counter() - start
        row |= {"plan": rounded(plan), "nll": [round(loss, 5) for loss in losses]}
        planted_jobs.append(options.output, row | {"seconds": round(seconds, 2)})
    print(subject.name, flush=True)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--part", default="1/1", help="I/N: every N-th model from the I-th")
    parser.add_argument("--output", type=Path, help="JSON lines; default: FOLDER/pruned.jsonl")
    parser.add_argument("--report", action="store_true", help="print the tables of what is there")
    parser.add_argument("--model", type=Path, help="a model folder, instead of the planted models")
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--sparsities", type=float, nargs="+", default=SPARSITIES)
    parser.add_argument("--spreads", type=float, nargs="+", default=SPREADS)
    parser.add_argument("--allocations", nargs="+", choices=SCORED, default=SCORED)
    parser.add_argument("--ends", nargs="+", choices=ENDS, default=ENDS)
    options = parser.parse_args()
    if options.model is not None and (options.text is None or options.calibration is None):
        parser.error("--model needs --text and --calibration")
    options.output = options.output or options.folder / "pruned.jsonl"
    return options


def main() -> None:
    """Prune what is missing, or print the tables."""
    options = parse_arguments()
    if options.report:
        planted_pruning_report.print_tables(planted_jobs.json_lines(options.output))
        return
    done = {
        (r["model"], r["sparsity"], r["allocation"], r["spread"], r["ends"])
        for r in planted_jobs.json_lines(options.output)
    }
    real = [real_subject(options)] if options.model is not None else None
    for sparsity, spread in product(options.sparsities, options.spreads):
        for subject in real or planted_subjects(options):
            run(subject, arms(sparsity, spread, options, subject), options, done)


if __name__ == "__main__":
    main()

"""Does alpha find under-trained blocks, and does acting on it help? Small Llamas with planted defects.

    python tests/benchmarks/planted.py train FOLDER --part 1/2     # and --part 2/2 beside it; goes on where it stopped
    python tests/benchmarks/planted.py measure FOLDER                # also while training, and with --part
    python tests/benchmarks/planted.py truth FOLDER
    python tests/benchmarks/planted.py report FOLDER --figure FILE.svg

Written before the first model of the benchmark was trained, after a pilot on the seeds 0 to 5, which are not used here
(the demo, which is no part of any statistic, has seed 0):

**Models.** Llama architecture, 8 blocks, width 96, 1.0 million parameters, the demo's tokenizer and text, 500 steps of
512 tokens, AdamW, cosine; one thread each. A family is a seed: all its models have the same initial weights and order
of data. Each family with defects has a healthy twin and nine models with two planted blocks each (one has one), at
random positions, so that every condition occurs once. Families: 3 for development, 9 for the test; 48 more healthy
models and 60 healthy ones of other depth, rate and decay for false alarms; 8 families whose blocks have feed-forward
widths of 64 to 768; 10 models with two blocks inserted late, for pruning and learning rates; 2 such models and their
twins trained five times longer on twice the tokens a step. The demo is a third such pair, with seed 0: its defect and
the rule for its positions (`two_late` in `planted_jobs.py`) were fixed with this text. Dropped for time: 12-block
models, more than one instance of a condition in a family, and doses between those listed.

**Conditions.** `planted_conditions.py` has them. Two more are made from a healthy twin without training: "random
vectors" (trained singular values, random singular vectors) and "rank cut" (the largest quarter of the singular values).
Rescaled models have v against o, up against down, and norm gains against the matrices that read them multiplied by
random powers (standard deviation 0.7 of the logarithm), which changes no output.

**Measures.** Per block, oriented so that more should mean less trained: FARMS alpha (defaults), alpha of whole matrices
(`mid`, released `peak`), stable rank, - Frobenius norm, - spectral norm, entropy, - share of eigenvalues above the
Marchenko-Pastur edge, - largest eigenvalue over the median, participation ratio; gradient norm, - KL to the model
without the block, cosine of the block's input and output; depth. Needing the history of the training: - distance from
the initial weights, - change in the last tenth of the steps. Averages are over the matrices of a block by role. Each is
adjusted by the mean of the healthy development and false-alarm models of the same depth at this position.

**AUC** of a condition: over its planted blocks, the mean share of the healthy blocks of the same model that have a
lower measure (ties count half). d' is the distance to their mean in pooled standard deviations within models.

**Primary test.** FARMS against the rival with the highest mean AUC over all defects on the development families: the
difference of AUC on the test families, for each of the four kinds of defects (learning rate, frozen, re-initialized,
inserted; doses together), bootstrap over families (10,000), two-sided, Holm over the kinds. Secondary: the same for
blocks of different widths against whole-matrix alpha, and for layers compared over all roles.

**Functional truth.** From the checkpoint only one block trains for 50 steps (AdamW, a tenth of the peak rate), and its
loss drop on the select speeches is compared with that of the twin's block at this position; Spearman with each measure.

**Details**, where the text above is silent, written before a model of a family with defects was measured. Gradient, KL
and cosine are of the first 8 windows of the select speeches. The Marchenko-Pastur edge is s^2 (sqrt(m) + sqrt(n))^2,
s^2 the mean squared entry. Among rivals of equal AUC the larger d' decides; where the rival needs the history, the best
one without it is tested too. Layers over all roles: each layer of a planted block against all layers of the healthy
blocks of its model, adjusted by the mean of the position over roles. The functional truth is the loss drop on the
first 64 windows minus that of the twin's block; rate constant, the same batches for all blocks of a family. Tables of
AUC show test families only. Models made without training have no history, the rescaled ones weight measures only.
Added after the first rank cut, which divided by 0: the median is that of the eigenvalues above 0.

**Predictions.**
1. FARMS: AUC at least 0.95 for rates of 0.03 to 0.3, frozen after 10%, re-initialized, inserted; at least 0.9 for
   frozen after 30%; below 0.9 for a rate of 0.6 and frozen after 60%.
2. No kind where FARMS and the best rival differ significantly. Under rescaling the norms fall below 0.8, FARMS stays.
3. Initial deviation x3 and Muon look bad to alpha (AUC above 0.8); strong decay does not.
4. Alpha does not see shuffled tokens, a memorised subset, rates of 3 and 10, heavy-tailed initial weights, random
   vectors and a rank cut (AUC below 0.65).
5. Spearman of FARMS with the functional truth is at least 0.5 over planted blocks of defects.
6. With blocks of different widths FARMS beats whole matrices by at least 0.05.
7. Oracle learning-rate factors gain nothing beyond errors. `farms` as measured loses against uniform pruning where the
   first block is pruned more, and gains with the first block apart.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

import planted_figure
import planted_jobs
import planted_measures
import planted_report
import planted_results
import planted_truth
import torch


def part(options: argparse.Namespace) -> tuple[int, int]:
    parts = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", options.part)
    if parts is None or int(parts[1]) > int(parts[2]):
        sys.exit(f"--part must be I/N with I from 1 to N, got {options.part!r}. Pass 1/2 and 2/2 for two processes.")
    return int(parts[1]), int(parts[2])


def report(options: argparse.Namespace) -> None:
    results = planted_results.read(options.output)
    print(planted_report.report(results))
    if options.figure:
        planted_figure.draw(results, options.figure)


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "train": lambda options: planted_jobs.train_missing(options.folder, *part(options)),
    "measure": lambda options: planted_measures.measure_missing(options.folder, options.output, *part(options)),
    "truth": lambda options: planted_truth.train_blocks(options.folder, options.output, *part(options)),
    "report": report,
}


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--part", default="1/1", help="I/N: every N-th model from the I-th")
    parser.add_argument("--output", type=Path, help="folder of measured.jsonl and truth.jsonl; by default FOLDER")
    parser.add_argument("--figure", type=Path, help="report: also draw the forest plot into this SVG or PNG file")
    options = parser.parse_args()
    options.output = options.output or options.folder
    torch.set_num_threads(1)
    COMMANDS[options.command](options)


if __name__ == "__main__":
    main()

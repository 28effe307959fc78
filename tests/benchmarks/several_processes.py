"""Time of analysis, calibration and pruning on several processes against one, with one thread each.

    python tests/benchmarks/several_processes.py SmolLM2-135M-Instruct [--processes 2] [--methods wanda sparsegpt]

Loading the model and reading the text are not counted. Runs on one process and on several take turns, and medians are
printed, with the number of weights that are zero in one result only: several processes add the same numbers in another
order, so that weights whose scores agree to the last bits may change places. For Wanda, the library counts such weights
(`num_ties` of the report). Leave a core to each process. At least as many batches of 8,192 calibration tokens as
processes are needed for all of them to work.

Prediction, before the first run, for SmolLM2-135M on two processes: analysis 0.52, all with Wanda 0.55 (the choice of
the masks is not shared), all with SparseGPT 0.57 (nor is the inverse of the products), at most 0.6 each. No weight
differs with Wanda, and fewer than one in a thousand with SparseGPT.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STAGES = ("analysis", "calibration and pruning")


def worker(options):
    """Measure one run; the first process writes seconds and masks."""
    import torch

    from hf_farms import CalibrationConfig, PruneConfig, analyze, prune
    from hf_farms.data.calibration import calibration_sequences
    from hf_farms.loading.opening import load_model
    from hf_farms.processes import leave_ranks, working_ranks

    ranks = working_ranks()
    loaded = load_model(options.model, stream=False)
    text = CalibrationConfig(num_sequences=options.sequences, sequence_length=options.length)
    batches, _ = calibration_sequences(text, model=loaded.model, tokenizer=loaded.tokenizer)
    config = PruneConfig(sparsity=0.5, method=options.methods[0])
    seconds = []
    ranks.gather(None)
    start = time.perf_counter()
    spectra = analyze(loaded.source, config.measurement(), ranks=ranks)
    ranks.gather(None)
    seconds.append(time.perf_counter() - start)
    start = time.perf_counter()
    report = prune(loaded.source, config, calibration=batches, spectra=spectra, ranks=ranks).report
    ranks.gather(None)
    seconds.append(time.perf_counter() - start)
    if ranks.index == 0:
        zeros = {name: (weight == 0).numpy() for name, weight in loaded.model.state_dict().items() if weight.ndim == 2}
        torch.save({"seconds": seconds, "zeros": zeros, "ties": report.num_ties}, options.worker)
    leave_ranks()


def run(options, method, count, file):
    """Run in so many processes; return the seconds of each stage, the masks, and the ties that were counted."""
    import torch

    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)] if count > 1 else []
    numbers = ["--sequences", str(options.sequences), "--length", str(options.length)]
    command = [sys.executable, *launcher, __file__, options.model, "--worker", str(file), "--methods", method, *numbers]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    result = torch.load(file, weights_only=False)
    return result["seconds"], result["zeros"], result["ties"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--methods", nargs="+", default=["wanda", "sparsegpt"])
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help="write all seconds to this JSON file")
    options = parser.parse_args()
    if options.worker is not None:
        worker(options)
        return
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for method in options.methods:
            times, masks = {1: [], options.processes: []}, {}
            for _ in range(options.repeat):
                for count in times:
                    seconds, masks[count], ties = run(options, method, count, Path(folder) / "result.pt")
                    times[count].append(seconds)
            results[method] = times
            one, several = ([statistics.median(part) for part in zip(*runs, strict=True)] for runs in times.values())
            for name, alone, shared in zip((*STAGES, "all"), (*one, sum(one)), (*several, sum(several)), strict=True):
                print(f"{method}, {name}: {alone:.1f} s, {shared:.1f} s on {options.processes}, {shared / alone:.2f}")
            first, second = masks.values()
            different = sum(int((first[name] != second[name]).sum()) for name in first)
            print(
                f"{method}: {different} of {sum(m.size for m in first.values()):,} weights are zero in one result only"
                f"{'' if ties is None else f', {ties} ties'}"
            )
    if options.output is not None:
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

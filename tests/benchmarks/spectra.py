"""What spectra cost and how good they are: each command prints a Markdown table, and how it was measured.

    python tests/benchmarks/spectra.py solver [MODEL]     our eigenvalues against a loop of svdvals, same windows
    python tests/benchmarks/spectra.py peak               the released `peak` fit against a loop over its candidates
    python tests/benchmarks/spectra.py default            the default windows against the paper's on LLaMA-7B layers
    python tests/benchmarks/spectra.py deviation [MODEL]  alpha of the default windows against 15 x 15 of the same size
    python tests/benchmarks/spectra.py coverage           how often the standard error holds what it says
    python tests/benchmarks/spectra.py weightwatcher MODEL
    python tests/benchmarks/spectra.py size               seconds against the width of a layer
    python tests/benchmarks/spectra.py stream             memory on checkpoints of several sizes

MODEL is a folder that transformers loads; spectra on a GPU are sections of gpu.py. Both sides of a ratio are timed in
turn in one run, after one run to warm up; medians are printed. What would take hours is timed on an evenly
spread sample and scaled up, and the output says so.
`weightwatcher` needs `pip install weightwatcher==0.7.7` (the 0.7 series; it leaves torch, transformers and
huggingface_hub as they are, `pip install --dry-run` shows it).
"""

import argparse
import importlib
import sys
from pathlib import Path


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, help="of torch, for both sides")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name, home, **numbers):
        sub = commands.add_parser(name)
        sub.set_defaults(home=home)
        for option, default in numbers.items():
            sub.add_argument(f"--{option.replace('_', '-')}", type=type(default), default=default)
        return sub

    solver = command("solver", "cost", width=4096, rows=2000, windows_per_dim=3, index=4.0, repeats=3)
    solver.add_argument("model", nargs="?")
    command("peak", "cost", size=450_000, sample=40, index=4.0, repeats=3)
    default = command("default", "cost", width=4096, sample=6, index=4.0, repeats=3)
    default.add_argument("--skip-overlap", action="store_true", help="leave out alpha of 15 x 15 windows (minutes)")
    size = command("size", "cost", index=4.0, repeats=3)
    size.add_argument("--widths", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192])
    stream = command("stream", "stream")
    stream.add_argument("--gigabytes", type=float, nargs="+", default=[2.8, 8.5])
    stream.add_argument("--folder", help="where the checkpoints are written for the while")
    deviation = command("deviation", "quality", scale=0.25, blocks=32)
    deviation.add_argument("model", nargs="?")
    deviation.add_argument("--synthetic", action="store_true")
    coverage = command("coverage", "quality", draws=200, size="512x512", rows="128,256")
    coverage.add_argument("--ensembles", nargs="+", default=["gaussian", "student", "spiked"])
    watcher = command("weightwatcher", "weightwatcher", layers=0, repeats=3)
    watcher.add_argument("model")
    return parser.parse_args()


def main():
    options = parse_arguments()
    # Also where hf_farms is not installed: the checkout that this file lies in.
    sys.path.append(str(Path(__file__).resolve().parents[2]))
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    return getattr(importlib.import_module(f"spectra_{options.home}"), options.command)(options)


if __name__ == "__main__":
    sys.exit(main())

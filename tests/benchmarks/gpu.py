"""What can only be measured on a GPU, in sections that each have a time limit, the most valuable first.

    python tests/benchmarks/gpu.py --output gpu.json                     # again after it ends: continues with the rest
    python tests/benchmarks/gpu.py --output gpu.json --sections spectra  # one section, once more
    python tests/benchmarks/gpu.py --output gpu.json --device cpu --small   # tries every section, in seconds

Takes two minutes on one H100 (80 GB) with torch 2.11 and transformers 5.17. Rows are printed and written to the output
as they are measured, so that a run that is stopped loses nothing. A section starts when its
limit fits into what is left of --minutes; a run of the same command goes on with the sections that have not ended.
Sections run in processes of their own: one that fails, or exceeds its limit, keeps its rows and stops no other.
`serving` needs vLLM 0.33, here or in the Python that HF_FARMS_SERVING_PYTHON names, and is skipped without it. It and
`swaps` and `recovery` have not run on a GPU yet, and `fsdp2` not to its end.

The weights are random, of the shapes of LLaMA-2-7B. What is timed on a part and scaled up to 32 blocks has `model_s`.
To add a section: a generator of rows that takes the options, and an entry in SECTIONS.
"""

import argparse
import importlib
import json
import multiprocessing
import sys
import time
import traceback
import unittest
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from hf_farms.reports import json_converter

FULL = {
    "width": 4096,
    "depth": 32,
    "blocks": 32,
    "shapes": "llama2-7b",
    "sample": 16,
    "sequences": 128,
    "length": 2048,
    "batch": 4,
    "tokens": [64, 1024, 8192],
    "repeats": 20,
    "steps": 3,
    "solver_sizes": [(32, 4096), (64, 2048), (128, 1024), (256, 512), (512, 448), (1024, 128), (2048, 32)],
    "served": {
        "shape": {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
        },
        "budget": 0.01,
        "prompts": 4,
        "prompt_tokens": 64,
        "tokens": 128,
        "batches": [1, 64],
        "repeats": 5,
    },
}
SMALL = {
    "width": 128,
    "depth": 2,
    "blocks": 1,
    "shapes": "tiny",
    "sample": 2,
    "sequences": 4,
    "length": 16,
    "batch": 2,
    "tokens": [8],
    "repeats": 2,
    "steps": 1,
    "solver_sizes": [(8, 4), (32, 2)],
    "served": {
        "shape": {
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
        "budget": 0.03,
        "prompts": 2,
        "prompt_tokens": 8,
        "tokens": 8,
        "batches": [1, 4],
        "repeats": 1,
    },
}
ARMS = ["full", "lora16", "lora=", "indexed"]


@dataclass(frozen=True)
class Section:
    """One section.

    Attributes:
        function: `module:name` of a generator of rows.
        limit: seconds; on a small try these are enough too.
        options: keyword arguments of the function.
    """

    function: str
    limit: int
    options: dict[str, Any] = field(default_factory=dict)


# The most valuable first. The limits are far above the seconds on an H100.
SECTIONS = {
    "spectra": Section("gpu_spectra:spectra", 60),
    "solvers": Section("gpu_solvers:solvers", 40),
    "pruning-wanda": Section("gpu_pruning:pruning", 100, {"method": "wanda", "blocks": 4}),
    "training": Section("gpu_training:training", 120, {"settings": ["4x512"], "arms": ARMS}),
    "semi-structured": Section("gpu_pruning:semi_structured", 40),
    "swaps": Section(
        "gpu_pruning:pruning", 60, {"method": "wanda", "blocks": 1, "patterns": ["unstructured"], "refine": "swaps"}
    ),
    "recovery": Section(
        "gpu_pruning:pruning",
        60,
        {"method": "wanda", "blocks": 1, "patterns": ["unstructured"], "recover": "submodule"},
    ),
    "fsdp2": Section("gpu_fsdp2:fsdp2", 60, {"kinds": ["SHARDED_STATE_DICT", "FULL_STATE_DICT"]}),
    "pruning-sparsegpt": Section("gpu_pruning:pruning", 100, {"method": "sparsegpt", "blocks": 2}),
    "callbacks": Section("gpu_callbacks:callbacks", 90, {"blocks": 4}),
    "spectra-paper": Section("gpu_spectra:spectra_paper", 70),
    "training-checkpointing": Section(
        "gpu_training:training", 90, {"settings": ["4x512"], "arms": ARMS, "checkpointing": True}
    ),
    "training-sizes": Section("gpu_training:training", 90, {"settings": ["1x512", "2x1024", "16x512"], "arms": ARMS}),
    "adapters": Section(
        "gpu_adapters:adapters", 60, {"ranks": [16, 128], "counts": [1, 4, 16, 64], "lengths": [1, 128]}
    ),
    "serving": Section("gpu_serving:serving", 400),
}


def environment(options):
    """Yield the row that every run begins with."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("device must be one that torch sees, got 'cuda'. Pass --device cpu --small for a try.")
    yield {
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "small": options.small,
    }


def run_in_child(connection, function, options, arguments):
    try:
        torch.manual_seed(0)
        module, name = function.split(":")
        generator = getattr(importlib.import_module(module), name)(options, **arguments)
        # Spectra and pruning need no gradients; a step of training asks for them itself.
        with torch.set_grad_enabled(module == "gpu_training"):
            for row in generator:
                connection.send(("row", row))
        connection.send(("end", "done"))
    except unittest.SkipTest as skipped:
        connection.send(("end", f"skipped: {skipped}"))
    except Exception:
        connection.send(("end", f"failed: {traceback.format_exc(limit=-4)}"))


def run_section(function, limit, options, arguments, show):
    """Run a section in a process of its own; return its rows and how it ended."""
    # A fork has everything imported. This process never touches CUDA, which a fork could not use any more then.
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=run_in_child, args=(sending, function, options, arguments))
    process.start()
    sending.close()  # so that the end of the process is the end of the pipe
    deadline, rows, status = time.monotonic() + limit, [], None
    while status is None:
        if not receiving.poll(max(0.0, deadline - time.monotonic())):
            status = f"stopped after {limit} s"
            process.kill()
            break
        try:
            kind, content = receiving.recv()
        except EOFError:
            process.join()
            status = f"failed: its process ended with {process.exitcode}"
            break
        if kind == "row":
            rows.append(content)
            show(rows)
        else:
            status = content
    process.join()
    return rows, status


def show_row(rows):
    """Print the last row as one of a Markdown table."""

    def cell(value):
        return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

    if len(rows) == 1:
        print(f"| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}")
    print(f"| {' | '.join(cell(rows[-1].get(name)) for name in rows[0])} |", flush=True)


class Results:
    """The file of results: environment, and of each section its rows, how it ended and its seconds."""

    def __init__(self, path, environment):
        self.path = Path(path)
        self.content = {"environment": environment, "sections": {}}
        if self.path.exists():
            self.content = json.loads(self.path.read_text())
            if self.content["environment"] != environment:
                sys.exit(
                    f"output must be new or of the same device and versions, got {str(path)!r} of "
                    f"{self.content['environment']}, here {environment}. Choose another --output."
                )

    def write(self, name, rows, status, seconds):
        self.content["sections"][name] = {"status": status, "seconds": round(seconds, 1), "rows": rows}
        unfinished = self.path.with_name(self.path.name + ".tmp")
        unfinished.write_text(json.dumps(self.content, indent=2) + "\n")
        unfinished.replace(self.path)

    def ended(self, name):
        """Whether a section ended by itself or by its limit; those that failed or were skipped are run again."""
        status = self.content["sections"].get(name, {}).get("status", "")
        return status == "done" or status.startswith("stopped")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="JSON file of results; continued where it exists")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, help="these, also where they have ended")
    parser.add_argument("--minutes", type=float, default=9.0, help="of this run")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="small sizes, whose figures mean nothing")
    return parser.parse_args()


def main():
    begin = time.monotonic()
    chosen = parse_arguments()
    sizes = SMALL if chosen.small else FULL
    options = argparse.Namespace(**sizes, device=chosen.device, small=chosen.small)
    for section in SECTIONS.values():
        importlib.import_module(section.function.partition(":")[0])
    json_converter()  # of what is imported late: a section would miss it only at its end
    rows, status = run_section("__main__:environment", 60, options, {}, show_row)
    if status != "done":
        sys.exit(status)
    results = Results(chosen.output, rows[0])
    left_out = []
    for name in chosen.sections or [name for name in SECTIONS if not results.ended(name)]:
        section, start = SECTIONS[name], time.monotonic()
        if start - begin + section.limit > 60 * chosen.minutes:
            left_out.append(name)
            continue
        print(f"\n## {name}\n", flush=True)

        def show(rows, name=name, start=start):
            show_row(rows)
            results.write(name, rows, "running", time.monotonic() - start)

        rows, status = run_section(section.function, section.limit, options, section.options, show)
        results.write(name, rows, status, time.monotonic() - start)
        print(f"\n{name}: {status}, {time.monotonic() - start:.1f} s", flush=True)
    if left_out:
        print(f"\nNot enough time left for: {', '.join(left_out)}. Run the same command again.")
    failed = [name for name, section in results.content["sections"].items() if section["status"].startswith("failed")]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""What analysis and pruning cost on a real model, as ratios measured in one run.

    python tests/benchmarks/speed.py MODEL [--repeat 3]

- analysis: `analyze` with default settings against a plain loop of `torch.linalg.svdvals` over the same windows;
- pruning: `prune` (Wanda, farms sparsities known) against a bare loop that registers one hook per layer, sums the
  squares of its inputs, and does the same two forward passes per block, but removes nothing.

Loading is left out. Both sides of a ratio are timed in turn, after one run to warm up; medians are printed.
"""

import argparse
import statistics
import time

import torch
from transformers import AutoModelForCausalLM

from hf_farms.blocks import ModelBlockSource
from hf_farms.config import FarmsConfig, PruneConfig
from hf_farms.pruning.pruner import prune
from hf_farms.spectra.analysis import analyze
from hf_farms.spectra.windows import sample_windows


def clock(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compare(ours, theirs, repeat):
    """Median seconds of both, and the median of the ratios of neighboring runs."""
    ours(), theirs()
    pairs = [(clock(ours), clock(theirs)) for _ in range(repeat)]
    a, b = (statistics.median(column) for column in zip(*pairs, strict=True))
    return a, b, statistics.median(x / y for x, y in pairs)


def svd_loop(model, rows):
    config = FarmsConfig(window_rows=rows)
    source = ModelBlockSource(model)
    for index in range(len(source)):
        for layer in source.open(index).layers:
            windows = sample_windows(layer.read(), config)
            for window in windows.reshape(-1, *windows.shape[-2:]):
                torch.linalg.svdvals(window)


@torch.no_grad()
def bare_loop(model, batches):
    source = ModelBlockSource(model)
    calls = [source.capture({"input_ids": batch}) for batch in batches]
    hidden = [call.hidden for call in calls]
    for index in range(len(source)):
        block, handles = source.open(index), []
        for layer in block.layers:
            total = torch.zeros(layer.metadata.shape[1])

            def add(_module, args, total=total):
                total += args[0].flatten(0, -2).square().sum(0)

            handles.append(layer.module.register_forward_pre_hook(add))
        for h, call in zip(hidden, calls, strict=True):
            block(h, call.arguments[index])
        for handle in handles:
            handle.remove()
        if index + 1 < len(source):
            hidden = [block(h, call.arguments[index]) for h, call in zip(hidden, calls, strict=True)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    print(f"{options.model}, float32 weights, {torch.get_num_threads()} threads, median of {options.repeat}")
    spectra = analyze(model)
    ours, theirs, ratio = compare(lambda: analyze(model), lambda: svd_loop(model, spectra.window_rows), options.repeat)
    layers = sum(len(block.layers) for block in spectra.blocks)
    print(f"analysis of {layers} layers, default windows and fit: {ours:.2f} s; ", end="")
    print(f"svdvals loop, float32: {theirs:.2f} s; ", end="")
    print(f"ratio {ratio:.2f}")
    generator = torch.Generator().manual_seed(0)
    batches = list(torch.randint(0, model.config.vocab_size, (32, 512), generator=generator).split(16))
    weights = {name: value.clone() for name, value in model.state_dict().items()}

    def ours():
        model.load_state_dict(weights)
        prune(model, PruneConfig(), calibration=batches, spectra=spectra)

    ours, theirs, ratio = compare(ours, lambda: bare_loop(model, batches), options.repeat)
    print(f"pruning, 32 x 512 tokens: {ours:.1f} s; bare hook loop: {theirs:.1f} s; ratio {ratio:.2f}")


if __name__ == "__main__":
    main()

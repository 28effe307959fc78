"""The command `gpu` of spectra.py: a LLaMA-2-7B in random weights, default windows and the paper's."""

import statistics
import sys
from functools import partial

import spectra_common as common
import torch

from hf_farms.config import FarmsConfig
from hf_farms.spectra import spectrum
from hf_farms.spectra.esd import window_eigenvalues
from hf_farms.spectra.windows import model_window_rows, plan_windows

# Width and blocks; the inner width is 2.6875 times the width.
MODELS = {"llama2-7b": (4096, 32), "llama-160m": (768, 12), "tiny": (256, 2)}
PAPER_ROWS, PAPER_PER_DIM = 2000, 15
COPY_BYTES = {"cuda": 2**32, "cpu": 2**27}


def _random_block(layers, index, seed, device):
    source = common.generator(seed, device)
    return [common.heavy_tailed(m, n, index, source, torch.bfloat16) for _, m, n in layers]


def _measure(weights, config):
    """As `analyze` does: windows of one size together, where this version of the library offers it."""
    together = getattr(spectrum, "layer_spectra", None)
    return together(weights, config) if together else [spectrum.layer_spectrum(weight, config) for weight in weights]


def _bandwidth(device):
    """Bytes per second of a copy on the device: read and written."""
    target = torch.empty(COPY_BYTES[torch.device(device).type], dtype=torch.uint8, device=device)
    origin = torch.zeros_like(target)
    (seconds,), _ = common.interleave([partial(target.copy_, origin)], 5, device)
    return 2 * target.numel() / seconds


def _bytes_moved(layers, config, dtype_bytes):
    """Weights read once in bfloat16, every Gram matrix written once and read once."""
    grams = sum(plan_windows(m, n, config).num_windows for _, m, n in layers) * config.window_rows**2
    return sum(m * n for _, m, n in layers) * 2 + 2 * dtype_bytes * grams


def _paper_sample(weights, rows, count):
    """Windows of the paper's setting, evenly spread over the windows of all layers of a block, as one copy."""
    config = FarmsConfig(window_rows=rows, windows_per_dim=PAPER_PER_DIM)
    windows = [window for weight in weights for window in common.each_window(weight, config)]
    return torch.stack(common.pick(windows, count)), len(windows)


def gpu(options):
    device = options.device
    if device == "cuda" and not torch.cuda.is_available():
        print("This command needs a CUDA device, and torch sees none.")
        return 1
    width, depth = MODELS[options.model_shapes]
    layers = common.llama_shapes(width)
    rows, paper_rows = model_window_rows([(m, n) for _, m, n in layers]), min(PAPER_ROWS, width * PAPER_ROWS // 4096)
    config = FarmsConfig(window_rows=rows)
    measured = min(options.blocks, depth)
    bandwidth = _bandwidth(device)
    first = _random_block(layers, options.index, 0, device)
    _measure(first, config)
    per_block = []
    with common.watch_solver() as seen:
        for block in range(measured):
            weights = _random_block(layers, options.index, block, device)
            taken, found = common.clock(partial(_measure, weights, config), device)
            per_block.append(taken)
            print(f"block {block}: {taken:.2f} s", file=sys.stderr, flush=True)
    ours = sum(per_block) / measured * depth
    windows = sum(layer.num_windows for layer in found) * depth
    moved = _bytes_moved(layers, config, 8 if seen["float64"] > seen["float32"] else 4) * depth
    sample, in_block = _paper_sample(first, paper_rows, options.sample)
    many = in_block * depth
    results = [("default windows, ours", f"{windows} of {rows}", ours, 1.0)]
    sides = [("paper's windows, ours", partial(window_eigenvalues, sample, dtype=torch.float32))]
    if not options.skip_svd:
        threads = common.svd_threads(sample[0])
        sides.append(("paper's windows, svdvals loop", partial(common.svd_loop, list(sample), threads)))
    seconds, _ = common.interleave([side for _, side in sides], options.repeats, device)
    for (name, _), taken in zip(sides, seconds, strict=True):
        whole = taken / len(sample) * many
        results.append((name, f"{many} of {paper_rows}", whole, whole / ours))
    common.table(("what", "windows", "seconds for the model", "ratio to the default"), results)
    extent = f"{measured} of {depth} blocks, scaled up" if measured < depth else f"all {depth} blocks"
    print(
        f"\n{options.model_shapes}, bfloat16 weights drawn at random, t({options.index:g}). The default windows were "
        f"timed on {extent}, drawing left out (median block {statistics.median(per_block):.3f} s). The paper's windows "
        f"were timed on {len(sample)} of the {in_block} of one block, evenly spread, and scaled up by their number to "
        f"{many}; eigenvalues only, float32, no fit.\n"
        f"Memory: {moved / 1e9:.1f} GB (weights read once, Gram matrices written and read once) in {ours:.1f} s are "
        f"{moved / ours / bandwidth:.2%} of the {bandwidth / 1e9:.0f} GB/s that a copy on the device reaches here."
    )
    common.footer(seen, "mid", device=device)
    return 0

"""The sections `spectra` and `spectra-paper` of gpu.py: a LLaMA-2-7B in random bfloat16 weights."""

from functools import partial

import spectra_common as common
import torch

from hf_farms.config import FarmsConfig
from hf_farms.spectra.esd import window_eigenvalues
from hf_farms.spectra.spectrum import layer_spectra
from hf_farms.spectra.windows import model_window_rows, plan_windows

PAPER_ROWS, PAPER_PER_DIM = 2000, 15
COPY_BYTES = {"cuda": 2**32, "cpu": 2**24}
INDEX = 4.0


def random_block(layers, seed, device):
    source = common.generator(seed, device)
    return [common.heavy_tailed(m, n, INDEX, source, torch.bfloat16) for _, m, n in layers]


def bandwidth(device):
    """Bytes per second of a copy on the device: read and written."""
    target = torch.empty(COPY_BYTES[torch.device(device).type], dtype=torch.uint8, device=device)
    origin = torch.zeros_like(target)
    (seconds,), _ = common.interleave([partial(target.copy_, origin)], 5, device)
    return 2 * target.numel() / seconds


def bytes_moved(layers, config, dtype_bytes):
    """Weights read once in bfloat16, every Gram matrix written once and read once."""
    grams = sum(plan_windows(m, n, config).num_windows for _, m, n in layers) * config.window_rows**2
    return sum(m * n for _, m, n in layers) * 2 + 2 * dtype_bytes * grams


def paper_sample(weights, rows, count):
    """Windows of the paper's setting, evenly spread over the windows of all layers of a block, as one copy."""
    config = FarmsConfig(window_rows=rows, windows_per_dim=PAPER_PER_DIM)
    windows = [window for weight in weights for window in common.each_window(weight, config)]
    return torch.stack(common.pick(windows, count)), len(windows)


def spectra(options):
    """Seconds of the default windows, block after block, scaled up to the whole model."""
    layers = common.llama_shapes(options.width)
    config = FarmsConfig(window_rows=model_window_rows([(m, n) for _, m, n in layers]))
    copied = bandwidth(options.device)
    layer_spectra(random_block(layers, 0, options.device), config)  # to warm up
    seconds = 0.0
    with common.watch_solver() as seen:
        for block in range(options.blocks):
            weights = random_block(layers, block, options.device)
            taken, measured = common.clock(partial(layer_spectra, weights, config), options.device)
            seconds += taken
            moved = bytes_moved(layers, config, 8 if seen["float64"] > seen["float32"] else 4)
            yield {
                "blocks": block + 1,
                "windows": f"{sum(layer.num_windows for layer in measured)} of {config.window_rows}",
                "block_s": taken,
                "model_s": seconds / (block + 1) * options.depth,
                "of_bandwidth": moved / taken / copied,
                "bandwidth_gb_s": copied / 1e9,
                "float64_share": seen["float64"] / max(1, sum(seen.values())),
            }


def spectra_paper(options):
    """Seconds of the paper's windows, ours and by a loop of `svdvals`, from an evenly spread sample of a block."""
    layers = common.llama_shapes(options.width)
    rows = min(PAPER_ROWS, options.width * PAPER_ROWS // 4096)
    sample, in_block = paper_sample(random_block(layers, 0, options.device), rows, options.sample)
    solvers = {
        "ours": lambda windows: window_eigenvalues(windows, dtype=torch.float32),
        "svdvals loop": lambda windows: common.svd_loop(list(windows), torch.get_num_threads()),
    }
    for name, solve in solvers.items():
        solve(sample[:1])  # to warm up
        taken, _ = common.clock(partial(solve, sample), options.device)
        yield {
            "solver": name,
            "windows": f"{len(sample)} of {in_block * options.depth}, {rows} rows",
            "sample_s": taken,
            "model_s": taken / len(sample) * in_block * options.depth,
        }

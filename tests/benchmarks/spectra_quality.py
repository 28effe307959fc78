"""Commands of spectra.py about the numbers themselves: deviation and coverage."""

import math
import statistics

import spectra_common as common
import torch

from hf_farms.config import FarmsConfig
from hf_farms.spectra.spectrum import layer_spectrum

MANY_PER_DIM = 15
# Tail index of the synthetic blocks, first to last, and how much a role adds to it.
DEPTH_INDEX = (3.0, 7.0)
ROLE_INDEX = {"q": -0.5, "k": -0.5, "v": 0.5}


def _synthetic_layers(scale, blocks):
    """Blocks of LLaMA-7B shapes; the tail index rises with depth, with a wave on it so that order is not depth."""
    for block in range(blocks):
        place = block / max(1, blocks - 1)
        index = DEPTH_INDEX[0] + (DEPTH_INDEX[1] - DEPTH_INDEX[0]) * place + 0.5 * math.sin(5 * block)
        for number, (name, m, n) in enumerate(common.llama_shapes(4096 * scale)):
            source = common.generator(100 * block + number)
            weight = common.heavy_tailed(m, n, index + ROLE_INDEX.get(name, 0.0), source, torch.bfloat16)
            yield block, name, weight


def _compare_windows(layers, config):
    """Per layer: block, alpha, its standard error, alpha of 15 x 15 windows of the same size."""
    many = FarmsConfig(window_rows=config.window_rows, windows_per_dim=MANY_PER_DIM)
    found = []
    for block, _, weight in layers:
        spectrum = layer_spectrum(weight, config)
        found.append((block, spectrum.alpha, spectrum.alpha_stderr, layer_spectrum(weight, many).alpha))
    return found


def _deviation_row(what, found, rows):
    deltas = [abs(alpha - many) for _, alpha, _, many in found]
    errors = [delta / stderr for delta, (_, _, stderr, _) in zip(deltas, found, strict=True) if stderr]
    blocks = sorted({row[0] for row in found})
    scores = [[statistics.fmean(row[i] for row in found if row[0] == block) for block in blocks] for i in (1, 3)]
    within = [sum(error <= limit for error in errors) / len(errors) for limit in (1, 2)]
    spread, between = statistics.pstdev(row[3] for row in found), statistics.pstdev(scores[1])
    return (
        *(what, len(found), len(blocks), rows, statistics.fmean(deltas), max(deltas), spread, between),
        *(common.spearman(*scores), f"{within[0]:.0%}", f"{within[1]:.0%}"),
    )


def deviation(options):
    """Default windows against 15 x 15 windows of the same size."""
    rows = []
    with common.watch_solver() as seen:
        if options.model:
            layers = common.layers_of(options.model)
            config = common.model_config(layers)
            rows.append(_deviation_row(options.model, _compare_windows(layers, config), config.window_rows))
        if options.synthetic or not options.model:
            one = list(_synthetic_layers(options.scale, 1))
            config = common.model_config(one)
            found = _compare_windows(_synthetic_layers(options.scale, options.blocks), config)
            rows.append(_deviation_row(f"synthetic, scale {options.scale:g}", found, config.window_rows))
    header = ("model", "layers", "blocks", "window rows", "mean difference", "largest", "spread of layers")
    more = ("spread of blocks", "Spearman of blocks", "within 1 error", "within 2")
    common.table((*header, *more), rows)
    print(
        f"\nDifference: |alpha of the default windows - alpha of {MANY_PER_DIM} x {MANY_PER_DIM} overlapping windows "
        "of the same size|, per layer; spread: standard deviation of alpha over layers, and of block scores (mean over "
        "a block's layers) over blocks; within: share of layers whose difference is at most 1 or 2 standard errors. "
        "Both measure one weight: `within` says how far the choice of windows matters, not how good errors are."
    )
    common.footer(seen, "mid")


def _gaussian(m, n, source):
    return torch.randn((m, n), generator=source)


def _student(m, n, source):
    """Independent Student-t(4) entries."""
    return common.student_t((m, n), 4.0, source)


def _spiked(m, n, source):
    """G S H + noise: a power-law spectrum, density exponent 2, in random directions."""
    k = min(m, n) // 2
    scale = (torch.arange(1, k + 1) / k) ** -0.5 / math.sqrt(n)
    signal = torch.randn((m, k), generator=source) * scale @ torch.randn((k, n), generator=source)
    return signal + 0.5 * torch.randn((m, n), generator=source)


ENSEMBLES = {
    "gaussian": _gaussian,
    "student": _student,
    "spiked": _spiked,
    "heavy": lambda m, n, source: common.heavy_tailed(m, n, 4.0, source),
}


def _t_coverage(limit, freedom, source):
    """Share of draws within `limit` standard errors where these are estimated from freedom + 1 Gaussian windows."""
    sample = torch.randn((100_000, freedom + 1), generator=source)
    return float((sample.mean(1).abs() <= limit * sample.std(1) / math.sqrt(freedom + 1)).double().mean())


def coverage(options):
    """Draws of one ensemble: how many alphas lie within their own standard error of the mean over draws."""
    m, n = (int(side) for side in options.size.split("x"))
    rows, source = [], common.generator()
    with common.watch_solver() as seen:
        for name in options.ensembles:
            configs = {
                (int(size), kind): FarmsConfig(window_rows=int(size), windows_per_dim=per_dim)
                for size in options.rows.split(",")
                for kind, per_dim in (("8 x 8", "auto"), ("15 x 15", MANY_PER_DIM))
            }
            found = {key: [] for key in configs}
            for draw in range(options.draws):
                weight = ENSEMBLES[name](m, n, common.generator(draw))
                for key, config in configs.items():
                    found[key].append(layer_spectrum(weight, config))
            for (size, kind), spectra in found.items():
                alphas = [spectrum.alpha for spectrum in spectra]
                errors = [spectrum.alpha_stderr for spectrum in spectra]
                center = statistics.fmean(alphas)
                off = [abs(alpha - center) / error for alpha, error in zip(alphas, errors, strict=True)]
                within = [f"{sum(x <= limit for x in off) / len(off):.0%}" for limit in (1, 2)]
                theory = [f"{_t_coverage(limit, (m // size) * (n // size) - 1, source):.0%}" for limit in (1, 2)]
                ratio = statistics.fmean(errors) / statistics.stdev(alphas)
                rows.append((name, f"{spectra[0].num_windows} of {size}, {kind}", center, ratio, *within, *theory))
    header = ("ensemble", "windows", "mean alpha", "mean error / deviation of draws", "within 1", "within 2")
    common.table((*header, "Student t, within 1", "within 2"), rows)
    print(
        f"\n{options.draws} draws of {options.size}; a share of 68% has a standard error of "
        f"{math.sqrt(0.68 * 0.32 / options.draws):.1%}. Exact errors would give 68% and 95%; errors estimated from as "
        "few independent Gaussian windows as lie side by side give the last two columns."
    )
    common.footer(seen, "mid")

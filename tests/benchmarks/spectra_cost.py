"""Commands of spectra.py that compare seconds on one machine: solver, peak, default, size."""

from functools import partial

import spectra_common as common
import torch

from hf_farms.config import FarmsConfig
from hf_farms.spectra.esd import window_eigenvalues
from hf_farms.spectra.powerlaw import fit_tail
from hf_farms.spectra.spectrum import layer_spectrum
from hf_farms.spectra.windows import model_window_rows

# Of LLaMA-7B: its width, and the rows of the paper's windows.
PAPER_WIDTH, PAPER_ROWS, PAPER_PER_DIM = 4096, 2000, 15
SVD_LOOP = "The svdvals loop is float32, on 1 or all threads, whichever was faster on one window."


def _solver_cases(options):
    """Name, weight or its shape, and windows of what `solver` measures."""
    cases = []
    if options.model:
        layers = common.layers_of(options.model)
        config = common.model_config(layers)
        middle = [(name, weight) for block, name, weight in layers if block == layers[-1][0] // 2]
        # The first layer of every shape.
        shapes = {tuple(weight.shape): (name, weight) for name, weight in reversed(middle)}
        for name, weight in reversed(shapes.values()):
            largest = FarmsConfig(window_rows=min(weight.shape), windows_per_dim=options.windows_per_dim)
            cases += [(name, weight, config), (name, weight, largest)]
    fixed = FarmsConfig(window_rows=options.rows, windows_per_dim=options.windows_per_dim)
    *_, square, _, _, wide = (shape for _, *shape in common.llama_shapes(options.width))
    return cases + [(f"synthetic, t({options.index:g})", shape, fixed) for shape in (square, wide)]


def solver(options):
    """Identical windows, identical fit: our eigenvalues against a loop of svdvals."""
    rows, worst = [], 0.0
    with common.watch_solver() as seen:
        for name, weight, config in _solver_cases(options):
            if isinstance(weight, list):
                weight = common.heavy_tailed(*weight, options.index, common.generator(), torch.bfloat16)
            windows = common.each_window(weight, config)
            threads = common.svd_threads(windows[0])
            seconds, (ours, theirs) = common.interleave(
                [
                    partial(layer_spectrum, weight, config),
                    lambda windows=windows, threads=threads: common.mid_alpha(common.svd_loop(windows, threads)),
                ],
                options.repeats,
            )
            difference = ours.alpha / theirs - 1
            worst = max(worst, abs(difference))
            shape, cut = ("x".join(map(str, x.shape)) for x in (weight, windows[0]))
            ratio = seconds[1] / seconds[0]
            rows.append(
                (name, shape, f"{len(windows)} of {cut}", *seconds, threads, ratio, ours.alpha, f"{difference:.0e}")
            )
    header = ("layer", "shape", "windows", "ours, s", "svdvals loop, s", "its threads", "ratio", "alpha", "difference")
    common.table(header, rows)
    print(f"\nLargest relative difference of alpha: {worst:.1e}.")
    common.footer(seen, "mid", more=f"{SVD_LOOP} Median of {options.repeats} or more after a warm-up.")


def _spread_spectrum(size, index):
    """`size` draws that look like pooled windows: from the quantiles of the windows of one heavy-tailed matrix."""
    weight = common.heavy_tailed(1024, 1024, index, common.generator())
    known = window_eigenvalues(torch.stack(common.each_window(weight, FarmsConfig(window_rows=512)))).flatten()
    known = known[known > 0].sort().values.log()
    place = torch.rand(size, generator=common.generator(1), dtype=torch.float64).mul_(len(known) - 1)
    low = place.long().clamp_max(len(known) - 2)
    return torch.lerp(known[low], known[low + 1], place - low).exp().sort().values


def _released_step(lam, log, i):
    """One turn of the released loop: alpha and KS distance of the tail that starts at i."""
    n = len(lam) - i
    alpha = 1 + n / (log[i:].sum() - n * log[i])
    distance = (1 - (lam[i:] / lam[i]) ** (1 - alpha) - torch.arange(n, dtype=lam.dtype) / n).abs().max()
    return float(alpha), float(distance)


def _released_candidates(lam):
    """From log10(0.95 x), as released, to 1.5 x, where x is the lower edge of the fullest of 100 bins of log10."""
    log10 = lam.log10()
    counts = torch.histc(log10, 100, min=float(log10[0]), max=float(log10[-1]))
    x = 10 ** (log10[0] + (log10[-1] - log10[0]) * counts.argmax() / 100)
    return ((lam[:-1] >= torch.log10(0.95 * x)) & (lam[:-1] <= 1.5 * x)).nonzero().flatten().tolist()


def peak(options):
    """The released `peak` fit: ours exactly, the plain loop on a sample of its candidates."""
    lam = _spread_spectrum(options.size, options.index)
    log, candidates = lam.log(), _released_candidates(lam)
    sample = common.pick(candidates, options.sample)
    (ours, loop), (fit, steps) = common.interleave(
        [
            lambda: fit_tail(lam[None], FarmsConfig.paper()),
            lambda: [_released_step(lam, log, i) for i in sample],
        ],
        options.repeats,
    )
    alpha, distance, tail_min = (float(x) for x in fit)
    again = _released_step(lam, log, int(torch.searchsorted(lam, tail_min)))
    whole = loop / len(sample) * len(candidates)
    common.table(
        ("eigenvalues", "candidates", "ours, s", "loop, s", "ratio", "alpha", "its distance", "least of the sample"),
        [(len(lam), len(candidates), ours, whole, whole / ours, alpha, distance, min(d for _, d in steps))],
    )
    best = all(distance <= d + 1e-12 for _, d in steps)
    same = abs(again[0] / alpha - 1) < 1e-9 and abs(again[1] - distance) < 1e-9
    print(
        f"\nThe loop was timed on {len(sample)} evenly spread candidates ({loop:.2f} s) and scaled up by their number. "
        f"Our winner is {'' if best else 'NOT '}at least as close as all of them; the plain formula at our winner "
        f"{'gives' if same else 'does NOT give'} the same alpha and distance."
    )
    common.footer(None, "peak, released bound", more="Both sides float64; the eigenvalues are given.")


def default(options):
    """Default windows against the paper's, on both shapes of layers in LLaMA-7B."""
    layers = common.llama_shapes(options.width)
    rows = model_window_rows([(m, n) for _, m, n in layers])
    paper_rows = round(PAPER_ROWS * options.width / PAPER_WIDTH)
    config = FarmsConfig(window_rows=rows)
    paper = FarmsConfig(window_rows=paper_rows, windows_per_dim=PAPER_PER_DIM)
    speed, agreement = [], []
    with common.watch_solver() as seen:
        for _, m, n in (layers[0], layers[-1]):
            weight = common.heavy_tailed(m, n, options.index, common.generator(), torch.bfloat16)
            windows = common.each_window(weight, paper)
            sample = common.pick(windows, options.sample)
            threads = common.svd_threads(sample[0])
            seconds, (ours, _) = common.interleave(
                [partial(layer_spectrum, weight, config), partial(common.svd_loop, sample, threads)], options.repeats
            )
            loop = seconds[1] / len(sample) * len(windows)
            ratio, work = loop / seconds[0], len(windows) * paper_rows**3 / (ours.num_windows * rows**3)
            speed.append(
                (f"{m}x{n}", ours.num_windows, len(windows), seconds[0], loop, threads, ratio, work, ratio / work)
            )
            if not options.skip_overlap:
                many = layer_spectrum(weight, FarmsConfig(window_rows=rows, windows_per_dim=PAPER_PER_DIM)).alpha
                delta = ours.alpha - many
                agreement.append(
                    (f"{m}x{n}", ours.alpha, ours.alpha_stderr, many, delta, abs(delta) / ours.alpha_stderr)
                )
    header = ("shape", "windows", "paper's windows", "ours, s", "svdvals loop, s", "its threads", "ratio")
    common.table((*header, "of it less work", "of it the solver"), speed)
    print(
        f"\nWindows of {rows} rows (one size for the seven layers of a block) against {PAPER_PER_DIM} x "
        f"{PAPER_PER_DIM} of {paper_rows}. The loop was timed on {options.sample} evenly spread windows and scaled up "
        "by their number; its fit is left out, ours is not. Less work: windows times rows cubed.\n"
    )
    if agreement:
        common.table(
            ("shape", "alpha", "standard error", f"alpha of 15 x 15 of {rows} rows", "difference", "in errors"),
            agreement,
        )
    common.footer(seen, "mid", more=f"{SVD_LOOP} Synthetic bfloat16 weights, t({options.index:g}).")


def size(options):
    """Seconds of the default setting for square layers."""
    rows, seconds = [], []
    with common.watch_solver() as seen:
        for width in options.widths:
            weight = common.heavy_tailed(width, width, options.index, common.generator(), torch.bfloat16)
            (taken,), (found,) = common.interleave([partial(layer_spectrum, weight)], options.repeats)
            seconds.append(taken)
            rows.append([width, f"{found.num_windows} of {found.window_shape[0]}", taken])
    fitted, local = common.slope(options.widths, seconds) if len(seconds) > 1 else (float("nan"), [])
    for row, exponent in zip(rows, ["", *local], strict=True):
        row.append(exponent)
    common.table(("width", "windows", "seconds", "exponent from the row above"), rows)
    print(f"\nSeconds grow as the width to the power {fitted:.2f} (least squares in logarithms).")
    common.footer(
        seen, "mid", more=f"Synthetic bfloat16 weights, t({options.index:g}); median of {options.repeats} or more."
    )

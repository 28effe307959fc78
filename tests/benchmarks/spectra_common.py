"""Shared by the commands of spectra.py: matrices, timing, what the solver did, tables."""

import math
import os
import statistics
import time
from collections import Counter
from contextlib import contextmanager
from itertools import pairwise

import torch

from hf_farms.config import FarmsConfig
from hf_farms.spectra.windows import model_window_rows, sample_windows

LEAST_SECONDS = 2.0
# Rows and columns of the seven layers of a block, as shares of the width.
LLAMA_BLOCK = (
    ("q", 1, 1),
    ("k", 1, 1),
    ("v", 1, 1),
    ("o", 1, 1),
    ("gate", 2.6875, 1),
    ("up", 2.6875, 1),
    ("down", 1, 2.6875),
)


def llama_shapes(width):
    """The layers of one block of LLaMA-7B, 4096 wide and 11008 inside, scaled to another width."""
    return [(name, round(rows * width), round(cols * width)) for name, rows, cols in LLAMA_BLOCK]


def generator(seed=0, device="cpu"):
    return torch.Generator(device=device).manual_seed(seed)


def student_t(shape, index, source):
    """Independent draws of Student's t with any number `index` of degrees of freedom (Bailey's polar method)."""
    radius = torch.rand(shape, generator=source, device=source.device).clamp_min_(1e-7)
    angle = torch.rand(shape, generator=source, device=source.device)
    return radius.pow_(-2 / index).sub_(1).mul_(index).clamp_min_(0).sqrt_().mul_((2 * math.pi * angle).cos_())


def heavy_tailed(m, n, index, source, dtype=torch.float32):
    """A stand-in for a trained weight: (G + T diag(s)) / sqrt(2 n).

    G is Gaussian, the noise of the initialization; T has Student-t(index) entries, and the scales s of the columns are
    Pareto(index), so that large entries share columns as in trained transformers. Entries and columns both put a power
    law on the largest eigenvalues of W W^T, with density exponent 1 + index / 2 for large matrices.
    """
    scale = torch.rand(n, generator=source, device=source.device).clamp_min_(1e-7).pow_(-1 / index)
    weight = student_t((m, n), index, source).mul_(scale)
    weight += torch.randn((m, n), generator=source, device=source.device)
    return (weight / math.sqrt(2 * n)).to(dtype)


def pick(items, count):
    """`count` of the items, evenly spread, ends included."""
    count = min(count, len(items))
    return [items[round(i * (len(items) - 1) / max(1, count - 1))] for i in range(count)]


def synchronize(device="cpu"):
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def clock(function, device="cpu"):
    synchronize(device)
    start = time.perf_counter()
    result = function()
    synchronize(device)
    return time.perf_counter() - start, result


def interleave(functions, repeats, device="cpu"):
    """Median seconds and the last result of every function: each is warmed up, then all are timed in turn.

    Short ones are timed more often than asked for: until `LEAST_SECONDS` have passed.
    """
    results = [function() for function in functions]
    seconds = [[] for _ in functions]
    while len(seconds[0]) < repeats or sum(map(sum, seconds)) < LEAST_SECONDS:
        for i, function in enumerate(functions):
            taken, results[i] = clock(function, device)
            seconds[i].append(taken)
    return [statistics.median(taken) for taken in seconds], results


@contextmanager
def watch_solver():
    """Counts the windows that go through torch.linalg.eigvalsh while open, by dtype: what the library really did."""
    seen, solve = Counter(), torch.linalg.eigvalsh

    def watched(x, *args, **kwargs):
        seen[str(x.dtype).removeprefix("torch.")] += x.shape[:-2].numel()
        return solve(x, *args, **kwargs)

    torch.linalg.eigvalsh = watched
    try:
        yield seen
    finally:
        torch.linalg.eigvalsh = solve


def mid_alpha(eigenvalues):
    """The `mid` fit written out: 1 + n / sum ln(lambda_j / lambda_i) over the upper half."""
    lam = eigenvalues.double().sort().values
    tail = lam[lam > 0]
    tail = tail[len(tail) // 2 :]
    return 1 + len(tail) / float((tail / tail[0]).log().sum())


def each_window(weight, config):
    windows = sample_windows(weight, config)
    return [windows[i, j] for i in range(windows.shape[0]) for j in range(windows.shape[1])]


@contextmanager
def torch_threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def svd_threads(window):
    """1 or all, whichever solves this window faster: on small windows or a busy machine several threads are slower."""
    seconds = {}
    for threads in {1, torch.get_num_threads()}:
        with torch_threads(threads):
            seconds[threads] = min(
                clock(lambda: torch.linalg.svdvals(window.float()), window.device)[0] for _ in range(3)
            )
    return min(seconds, key=seconds.get)


def svd_loop(windows, threads):
    """Squared singular values of each window in turn, as the released code finds them."""
    with torch_threads(threads):
        return torch.cat([torch.linalg.svdvals(window.float()).square() for window in windows])


def layers_of(folder):
    """`(block, name, weight)` of every linear layer, in the dtype of the checkpoint."""
    from transformers import AutoModelForCausalLM

    from hf_farms.blocks import ModelBlockSource

    source = ModelBlockSource(AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval())
    return [(i, layer.name, layer.read()) for i in range(len(source)) for layer in source.open(i).layers]


def model_config(layers, **options):
    """Default windows: one size for all of these layers."""
    return FarmsConfig(window_rows=model_window_rows([weight.shape for _, _, weight in layers]), **options)


def table(header, rows):
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(f"{x:.4g}" if isinstance(x, float) else str(x) for x in row) + " |", flush=True)


# Before this run: a busy machine shows here.
LOAD = os.getloadavg()[0]


def footer(solver, fit, *, device="cpu", more=""):
    """The line that every command ends with. `solver` is what `watch_solver` counted, None where nothing is solved."""
    total = sum((solver or {}).values())
    counts = ", ".join(
        f"{dtype} ({count / total:.1%} of the solves)" for dtype, count in sorted((solver or {}).items())
    )
    ours = "no solver" if solver is None else f"our solver eigvalsh in {counts}" if counts else "our solver not seen"
    where = torch.cuda.get_device_name() if torch.device(device).type == "cuda" else "none"
    print(
        f"\n{torch.get_num_threads()} threads of {os.cpu_count()} cores (load {LOAD:.1f} before), device {device}, GPU "
        f"{where}, torch {torch.__version__}; {ours}; fit {fit}.{' ' + more if more else ''}"
    )


def spearman(x, y):
    """Rank correlation; equal values share their mean rank."""

    def ranks(values):
        values = torch.as_tensor(values, dtype=torch.float64)
        smaller = (values[None] < values[:, None]).sum(1)
        return smaller + ((values[None] == values[:, None]).sum(1) - 1) / 2

    return float(torch.corrcoef(torch.stack([ranks(x), ranks(y)]))[0, 1])


def slope(x, y):
    """Of the least-squares line through (ln x, ln y), and between neighbors."""
    x, y = torch.tensor(x, dtype=torch.float64).log(), torch.tensor(y, dtype=torch.float64).log()
    fitted = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    local = [float((y2 - y1) / (x2 - x1)) for (x1, y1), (x2, y2) in pairwise(zip(x, y, strict=True))]
    return fitted, local

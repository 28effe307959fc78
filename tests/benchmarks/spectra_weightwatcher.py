"""The command `weightwatcher` of spectra.py: whole-matrix alpha, ours and WeightWatcher's."""

import contextlib
import io
import logging
import statistics

import spectra_common as common
import torch

from hf_farms.config import FarmsConfig
from hf_farms.spectra.powerlaw import fit_tail
from hf_farms.spectra.spectrum import layer_spectrum

WHOLE = FarmsConfig(window_rows=None, fit="goodness_of_fit")
# WeightWatcher 0.7.7, constants.py: eigenvalues up to this are left out, whatever the scale of the weight.
EVALS_THRESH = 1e-5

EXPLANATION = """
Both search every eigenvalue but the last for the smallest D = max_j |1 - (l_j / l_i)^(1 - alpha) - (j - i) / n|, with
alpha = 1 + n / sum ln(l_j / l_i), the first of equals, on the unnormalized squared singular values in float64 (theirs
by scipy's svd, ours by eigvalsh of the Gram matrix). By default `analyze()` fixes no fingers and clips no xmax. So the
alphas are equal up to rounding. What can differ, from the source of 0.7.7:
- it leaves out eigenvalues up to 1e-5, whatever the scale of the weight; ours leaves out exact zeros only. It matters
  where the best tail starts near 1e-5, that is for very small weights;
- fewer than 20 eigenvalues above that: a bias-corrected estimate and another criterion; ours stays with the formula;
- with CUDA it rounds weights to float16 and finds the singular values in float32;
- it also measures embeddings and heads, and pools the matrices of a convolution (ours cuts them into pieces);
- options: `pl_package="powerlaw"` (fails with powerlaw 2) with `xmax="force"` fits a law that ends at the largest
  eigenvalue; `fix_fingers="clip_xmax"` drops the largest ones; `fix_fingers="xmin_peak"` is our `peak` with
  `released_peak_bound`, but leaves out the last candidate of its range."""


def _layers(folder, count):
    """The model in float32, and `count` of its linear layers, evenly spread (0: all): name to weight."""
    from transformers import AutoModelForCausalLM

    from hf_farms.blocks import ModelBlockSource

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    source = ModelBlockSource(model)
    layers = [layer for i in range(len(source)) for layer in source.open(i).layers]
    return model, {layer.name: layer.read() for layer in common.pick(layers, count or len(layers))}


def weightwatcher(options):
    """Seconds of `analyze()` against ours on the same layers, and the alphas of both."""
    import weightwatcher as ww
    from threadpoolctl import threadpool_limits

    model, weights = _layers(options.model, options.layers)
    watcher = ww.WeightWatcher(model=model, log_level=logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):
        ids = {row.longname: int(row.layer_id) for row in watcher.describe().itertuples()}
    chosen = [ids[name] for name in weights]

    def theirs():
        with contextlib.redirect_stdout(io.StringIO()):
            return watcher.analyze(layers=chosen)

    def ours():
        return [layer_spectrum(weight, WHOLE) for weight in weights.values()]

    timings = []
    with common.watch_solver() as seen:
        for threads in sorted({1, torch.get_num_threads()}):
            with threadpool_limits(threads), common.torch_threads(threads):
                seconds, (spectra, details) = common.interleave([ours, theirs], options.repeats)
            timings.append((len(weights), threads, *seconds, seconds[1] / seconds[0]))
    common.table(("layers", "threads", "ours, s", "WeightWatcher, s", "ratio"), timings)
    print()
    _print_agreement(weights, spectra, {row.longname: row for row in details.itertuples()})
    print(EXPLANATION)
    common.footer(seen, WHOLE.fit, more=f"WeightWatcher {ww.__version__}, float32 weights, whole matrices.")


def _print_agreement(weights, spectra, details):
    theirs = [details[name].alpha for name in weights]
    variants = {
        "ours": [spectrum.alpha for spectrum in spectra],
        "ours, without eigenvalues up to 1e-5": [_cut_alpha(spectrum.eigenvalues) for spectrum in spectra],
        "ours, weights rounded to float16": [layer_spectrum(w.half(), WHOLE).alpha for w in weights.values()],
    }
    rows = []
    for name, alphas in variants.items():
        deltas = [abs(a - b) for a, b in zip(alphas, theirs, strict=True)]
        rows.append((name, common.spearman(alphas, theirs), statistics.fmean(deltas), max(deltas)))
    common.table(("alpha against WeightWatcher's", "Spearman", "mean difference", "largest difference"), rows)
    small = sum(bool((spectrum.eigenvalues <= EVALS_THRESH).any()) for spectrum in spectra)
    failed = sum(row.status != "success" for row in details.values())
    print(
        f"\nalpha from {min(theirs):.2f} to {max(theirs):.2f}; {small} of {len(spectra)} layers have eigenvalues up to "
        f"1e-5; WeightWatcher's fit failed on {failed}."
    )


def _cut_alpha(eigenvalues):
    return fit_tail(eigenvalues[None, eigenvalues > EVALS_THRESH], WHOLE).alpha.item()

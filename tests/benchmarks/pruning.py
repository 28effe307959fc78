"""Allocations, spreads and calibration sources compared on a real model, by paired NLL.

    python tests/benchmarks/pruning.py MODEL --calibration fit.txt --text test.txt --arms ARM [ARM ...]

An arm is SPARSITY:ALLOCATION[:OPTION=VALUE...], for example 0.5:farms, 0.5:farms:spread=0.2, 0.5:uniform:text=self.
Options: spread, shrink, text (of the calibration), and those of the measurement: rows, per_dim, fit, score; `released`
is fit=peak with the released bound. `shuffled0`, `shuffled1`, ..., `sorted` and `reversed` are placebos of `farms`: the
same block scores in another order (random, ascending with depth, reversed). Every row says
dense and pruned perplexity, the NLL difference to the dense model and to the first arm of the same sparsity with its
paired standard error, and the mean KL divergence from the dense to the pruned prediction. Nothing is chosen here:
give the selection text to choose, the test text to report.
"""

import argparse
import json
import math
import random
import time
from dataclasses import replace

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_farms.config import CalibrationConfig, FarmsConfig, PruneConfig
from hf_farms.data.calibration import calibration_sequences
from hf_farms.pruning.pruner import prune
from hf_farms.spectra.analysis import analyze

CONTEXT = 512
PLACEBOS = ("shuffled", "sorted", "reversed")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calibration", default="speeches", help="used by arms that name none")
    parser.add_argument("--text", required=True)
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--arms", nargs="+", required=True)
    parser.add_argument("--json", help="append one line per arm to this file")
    return parser.parse_args()


def windows_of(path, tokenizer, count):
    with open(path, encoding="utf-8") as file:
        ids = tokenizer(file.read(), verbose=False)["input_ids"]
    return torch.tensor(ids[: len(ids) // CONTEXT * CONTEXT]).view(-1, CONTEXT)[:count]


@torch.no_grad()
def predict(model, windows):
    for window in windows:
        yield window, model(input_ids=window[None], use_cache=False).logits[0, :-1].float().log_softmax(-1)


def measure(model, windows, dense):
    """NLL and KL(dense || model) of every window."""
    nll, kl = [], []
    for (window, log_q), log_p in zip(predict(model, windows), dense, strict=True):
        nll.append(-log_q.gather(1, window[1:, None]).double().mean().item())
        p = log_p.float()
        kl.append((p.exp() * (p - log_q)).sum(-1).double().mean().item())
    return torch.tensor(nll, dtype=torch.float64), torch.tensor(kl, dtype=torch.float64)


def paired(a, b):
    delta = a - b
    return delta.mean().item(), delta.std().item() / math.sqrt(len(delta))


def read_arm(arm, calibration):
    """Sparsity, allocation or placebo, configuration, and calibration text of an arm."""
    sparsity, allocation, *rest = arm.split(":")
    values = dict(item.split("=") for item in rest)
    farms = FarmsConfig.paper() if values.get("fit") == "released" else FarmsConfig()
    farms = replace(farms, window_rows=FarmsConfig().window_rows, windows_per_dim=FarmsConfig().windows_per_dim)
    named = {"rows": "window_rows", "per_dim": "windows_per_dim", "score": "block_score"}
    changes = {named[name]: values[name] for name in named if name in values}
    for name in ("window_rows", "windows_per_dim"):
        if name in changes:
            changes[name] = int(changes[name])
    if values.get("fit", "released") != "released":
        changes["fit"] = values["fit"]
    config = PruneConfig(
        sparsity=float(sparsity),
        allocation="farms" if allocation.startswith(PLACEBOS) else allocation,
        spread=float(values.get("spread", PruneConfig().spread)),
        shrink=values.get("shrink", "on") == "on",
        spectra=replace(farms, **changes),
    )
    return sparsity, allocation, config, values.get("text", calibration)


def reorder(report, how):
    """The same alphas on other blocks."""
    order = list(range(len(report.blocks)))
    if how.startswith("shuffled"):
        random.Random(int(how.removeprefix("shuffled") or 0)).shuffle(order)
    elif how == "reversed":
        order.reverse()
    elif how == "sorted":
        order.sort(key=lambda i: report.blocks[i].alpha)
    source = [report.blocks[i] for i in order]
    blocks = [
        replace(b, alpha=s.alpha, alpha_stderr=s.alpha_stderr) for b, s in zip(report.blocks, source, strict=True)
    ]
    return replace(report, blocks=tuple(blocks))


def main():
    options = parse_arguments()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    windows = windows_of(options.text, tokenizer, options.windows)
    dense = [log_p.half() for _, log_p in predict(model, windows)]
    dense_nll, _ = measure(model, windows, dense)
    print(
        f"{options.model}: dense {dense_nll.mean().exp():.2f}, {len(windows)} windows of {CONTEXT} "
        f"tokens, float32, {options.text}"
    )
    print("| arm | perplexity | NLL - dense | NLL - first | KL | block sparsity | s |\n|---|---|---|---|---|---|---|")
    first, batches = {}, {}
    for arm in options.arms:
        sparsity, allocation, config, source = read_arm(arm, options.calibration)
        placebo = allocation if allocation.startswith(PLACEBOS) else ""
        model.load_state_dict(weights)
        if source not in batches:
            batches[source] = calibration_sequences(CalibrationConfig(source=source), model=model, tokenizer=tokenizer)[
                0
            ]
        start = time.perf_counter()
        spectra = None if allocation == "uniform" else analyze(model, config.measurement())
        spectra = reorder(spectra, placebo) if placebo else spectra
        report = prune(model, config, calibration=batches[source], spectra=spectra).report
        seconds = time.perf_counter() - start
        nll, kl = measure(model, windows, dense)
        base = first.setdefault(sparsity, nll)
        row = {
            "arm": arm,
            "sparsity": report.sparsity,
            "perplexity": nll.mean().exp().item(),
            "to_dense": paired(nll, dense_nll),
            "to_first": paired(nll, base),
            "kl": kl.mean().item(),
            "notes": report.notes,
            "seconds": seconds,
            "blocks": [b.sparsity for b in report.blocks],
            "nll": nll.tolist(),
        }
        low, high = min(row["blocks"]), max(row["blocks"])
        print(
            f"| {arm} | {row['perplexity']:.2f} | {row['to_dense'][0]:+.3f} ± {row['to_dense'][1]:.3f} | "
            f"{row['to_first'][0]:+.3f} ± {row['to_first'][1]:.3f} | {row['kl']:.3f} | "
            f"{low:.3f} to {high:.3f} | {seconds:.0f} |",
            flush=True,
        )
        if options.json:
            with open(options.json, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()

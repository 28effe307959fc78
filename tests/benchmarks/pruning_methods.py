"""What Wanda and SparseGPT cost, against plain loops as the papers describe them, as ratios measured in one run.

    python tests/benchmarks/pruning_methods.py [MODEL] [--blocks 1] [--sequences 8] [--repeat 3]

Without MODEL the first blocks of a random model with the shapes of SmolLM2-135M, with it those of that model. Both
sides run every block twice on the same batches, to measure and to hand on. The loops keep one statistic for every
layer, sort rows (Wanda), invert a Hessian for every layer and correct one column at a time in blocks of 128
(SparseGPT), and choose groups of N:M in a loop over columns. `prune` is timed as users call it, with uniform sparsity.
Both sides are timed in turn, after one run to warm up; medians of seconds and of ratios of neighboring runs.
"""

import argparse
import statistics
import time

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from hf_farms.blocks import ModelBlockSource
from hf_farms.config import PruneConfig
from hf_farms.pruning.patterns import lowest_of_groups
from hf_farms.pruning.pruner import prune

COLUMNS = 128
SMOLLM2 = {
    "vocab_size": 1000,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}


def synchronized_clock(function):
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(ours, theirs, repeat):
    """Median seconds of both, and the median of the ratios of neighboring runs."""
    ours(), theirs()
    pairs = [(synchronized_clock(ours), synchronized_clock(theirs)) for _ in range(repeat)]
    a, b = (statistics.median(column) for column in zip(*pairs, strict=True))
    return a, b, statistics.median(x / y for x, y in pairs)


class Norms:
    """Mean squares of the inputs of one layer."""

    def __init__(self, width, device):
        self.mean, self.count = torch.zeros(width, device=device), 0

    def add(self, inputs):
        rows = inputs.reshape(-1, inputs.shape[-1]).T.float()
        new = inputs.shape[0]
        self.mean *= self.count / (self.count + new)
        self.count += new
        self.mean += torch.norm(rows, p=2, dim=1) ** 2 / self.count


class Hessian:
    """Mean products of the inputs of one layer."""

    def __init__(self, width, device):
        self.mean, self.count = torch.zeros(width, width, device=device), 0

    def add(self, inputs):
        rows = inputs.reshape(-1, inputs.shape[-1]).T.float()
        new = inputs.shape[0]
        self.mean *= self.count / (self.count + new)
        self.count += new
        rows = (2 / self.count) ** 0.5 * rows
        self.mean += rows @ rows.T


def groups_by_column(scores, zeros, size):
    mask = torch.zeros_like(scores, dtype=torch.bool)
    for column in range(0, scores.shape[1], size):
        near = scores[:, column : column + size].float()
        mask.scatter_(1, column + torch.topk(near, zeros, dim=1, largest=False)[1], True)
    return mask


def wanda_loop(weight, norms, sparsity, group):
    scores = weight.abs() * norms.mean.sqrt()
    if group:
        mask = groups_by_column(scores, *group)
    else:
        order = torch.sort(scores, dim=-1, stable=True)[1][:, : int(weight.shape[1] * sparsity)]
        mask = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, True)
    return weight.masked_fill(mask, 0)


def sparsegpt_loop(weight, hessian, sparsity, group):
    w, h = weight.float().clone(), hessian.mean.clone()
    unused = h.diagonal() == 0
    h.diagonal()[unused] = 1
    w[:, unused] = 0
    h.diagonal().add_(0.01 * h.diagonal().mean())
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    for start in range(0, w.shape[1], COLUMNS):
        stop = min(start + COLUMNS, w.shape[1])
        near, inverse = w[:, start:stop].clone(), upper[start:stop, start:stop]
        pruned, errors = torch.zeros_like(near), torch.zeros_like(near)
        mask = torch.zeros_like(near, dtype=torch.bool)
        if not group:
            scores = near**2 / inverse.diagonal().reshape(1, -1) ** 2
            mask = scores <= torch.sort(scores.flatten())[0][int(scores.numel() * sparsity)]
        for i in range(stop - start):
            if group and i % group[1] == 0:
                scores = near[:, i : i + group[1]] ** 2 / inverse.diagonal()[i : i + group[1]].reshape(1, -1) ** 2
                mask.scatter_(1, i + torch.topk(scores, group[0], dim=1, largest=False)[1], True)
            column = near[:, i].clone()
            column[mask[:, i]] = 0
            pruned[:, i] = column
            error = (near[:, i] - column) / inverse[i, i]
            near[:, i:] -= error.unsqueeze(1).matmul(inverse[i, i:].unsqueeze(0))
            errors[:, i] = error
        w[:, start:stop] = pruned
        w[:, stop:] -= errors.matmul(upper[start:stop, stop:])
    return w.to(weight.dtype)


@torch.no_grad()
def loop(model, batches, statistic, remove, sparsity, group):
    source = ModelBlockSource(model)
    calls = [source.capture({"input_ids": batch}) for batch in batches]
    hidden = [call.hidden for call in calls]
    for index in range(len(source)):
        block, handles, found = source.open(index), [], {}
        for layer in block.layers:
            found[layer.name] = statistic(layer.metadata.shape[1], layer.device)
            handles.append(
                layer.module.register_forward_pre_hook(lambda _m, args, s=found[layer.name]: s.add(args[0].detach()))
            )
        for h, call in zip(hidden, calls, strict=True):
            block(h, call.arguments[index])
        for handle in handles:
            handle.remove()
        for layer in block.layers:
            layer.write_(remove(layer.read(check=False), found[layer.name], sparsity, group))
        if index + 1 < len(source):
            hidden = [block(h, call.arguments[index]) for h, call in zip(hidden, calls, strict=True)]


def model_of(options):
    torch.manual_seed(0)
    if options.model is None:
        model = LlamaForCausalLM(LlamaConfig(**SMOLLM2, num_hidden_layers=options.blocks))
    else:
        model = AutoModelForCausalLM.from_pretrained(
            options.model, dtype=torch.float32, num_hidden_layers=options.blocks
        )
    return model.eval().to(options.device)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    model = model_of(options)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    ids = torch.randint(0, model.config.vocab_size, (options.sequences, options.length))
    batches = list(ids.split(max(1, 8192 // options.length)))
    print(
        f"{options.model or 'shapes of SmolLM2-135M'}, {options.blocks} blocks, {options.sequences} x {options.length} "
        f"tokens, float32, {options.device}, {torch.get_num_threads()} threads, median of {options.repeat}\n"
        "| method | pattern | prune, s | loop, s | ratio |\n|---|---|---|---|---|"
    )
    for method, statistic, remove in (("wanda", Norms, wanda_loop), ("sparsegpt", Hessian, sparsegpt_loop)):
        for pattern, group in (("unstructured", None), ("2:4", (2, 4))):
            config = PruneConfig(method=method, pattern=pattern, allocation="uniform")

            def ours(config=config):
                model.load_state_dict(weights)
                prune(model, config, calibration=batches)

            def theirs(statistic=statistic, remove=remove, group=group):
                model.load_state_dict(weights)
                loop(model, batches, statistic, remove, 0.5, group)

            a, b, ratio = compare(ours, theirs, options.repeat)
            print(f"| {method} | {pattern} | {a:.2f} | {b:.2f} | {ratio:.2f} |", flush=True)
    scores = torch.rand(1536, 576, device=options.device)
    assert torch.equal(lowest_of_groups(scores, 2, 4), groups_by_column(scores, 2, 4))
    a, b, ratio = compare(
        lambda: lowest_of_groups(scores, 2, 4), lambda: groups_by_column(scores, 2, 4), 3 * options.repeat
    )
    print(f"2:4 mask of 1536 x 576 scores: {1000 * a:.1f} ms; loop over columns: {1000 * b:.1f} ms; ratio {ratio:.2f}")


if __name__ == "__main__":
    main()

"""Masks of the released Wanda and SparseGPT on layers of a real model, against those of this project.

    python tests/benchmarks/released_masks.py MODEL --wanda FOLDER --sparsegpt FOLDER [--blocks 0 14 29] [--write FILE]

The folders are checkouts of the released code, which is run as it is; README.md of `tests/golden` names the commits.
Without --write every layer of the blocks is pruned whole by both sides, and the entries that differ are counted. With
it the layers of FIXTURE are pruned by the released code only, and what a test needs is written. HiddenStates are those
of the dense model in float32 on passages of the text inside the package.
"""

import argparse
import contextlib
import importlib
import io
import sys
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_farms.config import CalibrationConfig
from hf_farms.data.calibration import calibration_sequences
from hf_farms.pruning.methods import pruning_method
from hf_farms.pruning.patterns import Removal

# Share that goes, and zeros in every so many neighbors.
WANDA = {"50": (0.5, None), "60": (0.6, None), "2of4": (0.5, (2, 4)), "4of8": (0.5, (4, 8))}
SPARSEGPT = {name: WANDA[name] for name in ("50", "2of4", "4of8")}
ROLES = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
# Layer: rows and tokens that are kept of it. With as many tokens as inputs SparseGPT's damping is the released one.
FIXTURE = {"model.layers.14.self_attn.k_proj": (192, 576), "model.layers.14.mlp.down_proj": (48, 100)}
# Corrected weights are kept of so many rows; masks of all.
WEIGHT_ROWS = 48


class OneLayer(nn.Module):
    """A block that the released code sees as a model's only one; it hands its inputs on as they came."""

    def __init__(self, weight):
        super().__init__()
        self.linear = linear_of(weight)

    def forward(self, inputs, **_):
        self.linear(inputs)
        return (inputs,)


class OneLayerModel(nn.Module):
    """As much of a causal language model as the released Wanda looks at; its tokens are the layer's inputs."""

    def __init__(self, weight, length):
        super().__init__()
        self.model = nn.Module()
        self.model.layers = nn.ModuleList([OneLayer(weight)])
        self.config = SimpleNamespace(use_cache=False, hidden_size=weight.shape[1])
        self.hf_device_map = {"model.embed_tokens": torch.device("cpu")}
        self.seqlen = length

    def forward(self, inputs):
        return self.model.layers[0](inputs, attention_mask=None, position_ids=None)


def linear_of(weight):
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data = weight.clone()
    return linear


def load_released(options):
    """The module of Wanda with its data set left out, and the class of SparseGPT without its wait for a GPU."""
    sys.path[:0] = [options.wanda, options.sparsegpt]
    wanda, sparsegpt = importlib.import_module("lib.prune"), importlib.import_module("sparsegpt")
    if not torch.cuda.is_available():
        torch.cuda.synchronize = lambda: None
    return wanda, sparsegpt.SparseGPT


def released_wanda(wanda, weight, inputs, ratio, group):
    """`inputs` are `(sequences, tokens, columns)`."""
    model = OneLayerModel(weight, inputs.shape[1])
    wanda.get_loaders = lambda *_, **__: ([(sequence[None],) for sequence in inputs], None)
    arguments = SimpleNamespace(nsamples=len(inputs), seed=0, sparsity_ratio=ratio, use_variant=False)
    zeros, size = group or (0, 0)
    with contextlib.redirect_stdout(io.StringIO()):
        wanda.prune_wanda(arguments, model, None, torch.device("cpu"), prune_n=zeros, prune_m=size)
    return model.model.layers[0].linear.weight.data


def released_sparsegpt(sparsegpt, weight, inputs, ratio, group):
    linear = linear_of(weight)
    pruner = sparsegpt(linear)
    for sequence in inputs:
        pruner.add_batch(sequence[None], None)
    zeros, size = group or (0, 0)
    with contextlib.redirect_stdout(io.StringIO()):
        pruner.fasterprune(ratio, prunen=zeros, prunem=size, percdamp=0.01, blocksize=128)
    return linear.weight.data


def released(modules, method, *arguments):
    wanda, sparsegpt = modules
    if method == "wanda":
        return released_wanda(wanda, *arguments)
    return released_sparsegpt(sparsegpt, *arguments)


def ours(method, weight, inputs, cut):
    functions = pruning_method(method)
    statistic = functions.statistic(weight.shape[1], weight.device)
    for sequence in inputs:
        statistic.add(sequence)
    return functions.prune(weight, statistic.prepared(""), cut)


@torch.no_grad()
def inputs_of(name, layers, sequences, length):
    """What the layers of the dense model are multiplied with, `(sequences, tokens, columns)` each, and the weights."""
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()
    config = CalibrationConfig(num_sequences=sequences, sequence_length=length)
    batches, notes = calibration_sequences(config, model=model, tokenizer=AutoTokenizer.from_pretrained(name))
    assert not notes, notes
    caught = defaultdict(list)
    for layer in layers:
        model.get_submodule(layer).register_forward_pre_hook(
            lambda _module, arguments, name=layer: caught[name].append(arguments[0])
        )
    for batch in batches:
        model.model(batch, use_cache=False)
    return {layer: (model.get_submodule(layer).weight.data, torch.cat(caught[layer])) for layer in layers}


def write(modules, options):
    """Weights and inputs in float16, and what the released code makes of exactly these numbers in float32."""
    arrays = {}
    for layer, (weight, inputs) in inputs_of(options.model, list(FIXTURE), 4, 144).items():
        rows, tokens = FIXTURE[layer]
        role = layer.rsplit(".", 1)[1]
        weight, inputs = weight[:rows].half(), inputs[:, : tokens // len(inputs)].half()
        arrays |= {f"{role}_weight": weight, f"{role}_inputs": inputs}
        methods = {"wanda": WANDA, "sparsegpt": SPARSEGPT if inputs[..., 0].numel() >= inputs.shape[-1] else {}}
        for method, settings in methods.items():
            for name, setting in settings.items():
                pruned = released(modules, method, weight.float(), inputs.float(), *setting)
                arrays[f"{role}_{method}_{name}"] = np.packbits(pruned.numpy() == 0)
                if method == "sparsegpt":
                    part = pruned[:WEIGHT_ROWS]
                    arrays[f"{role}_{method}_{name}_kept"] = part[part != 0]
    np.savez_compressed(options.write, **arrays)


def counts(theirs, ratio, method, group):
    """What a comparison removes: the share, and for SparseGPT without a pattern also what the released code removed.

    Its threshold takes one more than the share from every 128 columns, and all that equal it.
    """
    exact = len(theirs) * int(theirs.shape[1] * ratio)
    return {"the share": exact} | ({"as many": int((theirs == 0).sum())} if method == "sparsegpt" and not group else {})


def compare(modules, options):
    """Prune whole layers both ways, and count by setting; weights are compared in rows whose masks are equal."""
    layers = [f"model.layers.{block}.{role}" for block in options.blocks for role in ROLES]
    lines = defaultdict(list)
    for weight, inputs in inputs_of(options.model, layers, options.sequences, options.length).values():
        for method, settings in (("wanda", WANDA), ("sparsegpt", SPARSEGPT)):
            for name, (ratio, group) in settings.items():
                theirs = released(modules, method, weight, inputs, ratio, group)
                for removed, count in counts(theirs, ratio, method, group).items():
                    got = ours(method, weight, inputs, Removal(count, group))
                    differ = (got == 0) != (theirs == 0)
                    same = ~differ.any(dim=1)
                    error = float((got - theirs)[same].norm() / theirs[same].norm())
                    line = (int(differ.sum()), int((~same).sum()), len(weight), weight.numel(), error)
                    lines[method, name, removed].append(line)
    print(
        "| method | setting | removed here | layers | with equal masks | entries that differ | of | most in one layer "
        "| rows that differ | of | weights of other rows differ by |\n|---|---|---|---|---|---|---|---|---|---|---|"
    )
    for key, found in lines.items():
        entries, changed, rows, size, errors = zip(*found, strict=True)
        print(
            f"| {' | '.join(key)} | {len(found)} | {entries.count(0)} | {sum(entries)} | {sum(size)} | {max(entries)} "
            f"| {sum(changed)} | {sum(rows)} | {max(errors):.1e} |"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--wanda", required=True)
    parser.add_argument("--sparsegpt", required=True)
    parser.add_argument("--blocks", type=int, nargs="+", default=[0, 14, 29])
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--write", metavar="FILE")
    options = parser.parse_args()
    (write if options.write else compare)(load_released(options), options)


if __name__ == "__main__":
    main()

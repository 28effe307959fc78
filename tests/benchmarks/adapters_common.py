"""Shared by adapters.py and gpu_adapters.py: layers, adapters of random channels, and LoRAs of as many parameters."""

import statistics
import time
import warnings
from functools import partial

import spectra_common as common
import torch
from torch import nn

from hf_farms.s2ft.adapters.patches import S2FTAdapter, WeightPatch, fingerprint

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
SIDES = ("inputs", "outputs")
COPY_BYTES = 2**27
LEAST_SECONDS = 0.05


class Layers(nn.Module):
    """Square layers that all have the same inputs, and no other computation."""

    def __init__(self, d, count, dtype, device):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(d, d, bias=False, dtype=dtype, device=device) for _ in range(count))
        self.eval().requires_grad_(False)

    def forward(self, x):
        for layer in self.layers:
            y = layer(x)
        return y

    def twin(self):
        """Other modules with the same weights, for another library."""
        weight = self.layers[0].weight
        twin = Layers(1, len(self.layers), weight.dtype, weight.device)
        for own, other in zip(twin.layers, self.layers, strict=True):
            own.weight, own.in_features, own.out_features = other.weight, other.in_features, other.out_features
        return twin


def random_adapter(model, side, channels, seed):
    """An adapter of random channels; every difference is a hundredth of the weight."""
    generator, patches = torch.Generator().manual_seed(seed), {}
    for name, weight in model.named_parameters():
        dim = int(side == "inputs")
        indices = torch.randperm(weight.shape[dim], generator=generator)[:channels].sort().values
        base = weight.detach().cpu().index_select(dim, indices).contiguous()
        patches[name] = WeightPatch(
            name=name,
            shape=tuple(weight.shape),
            side=side,
            dim=dim,
            indices=indices,
            values=base * 1.01,
            base=base,
            base_fingerprint=fingerprint(base),
        )
    return S2FTAdapter(patches=patches, dtype=weight.dtype)


class GatheredLoRA:
    """LoRAs of several adapters for one layer, as batched products over the samples (as in S-LoRA, arXiv 2311.03285).

    Args:
        d: inputs and outputs.
        rank: of each.
        count: number of adapters.
        dtype: of the factors.
        device: of the factors.
    """

    def __init__(self, d, rank, count, dtype, device):
        self.a = torch.randn(count, d, rank, dtype=dtype, device=device) / d**0.5
        self.b = torch.randn(count, rank, d, dtype=dtype, device=device) / rank**0.5

    def gathered(self, ids):
        """Factors of each sample: `(b, n, r)` and `(b, r, m)`."""
        return self.a[ids], self.b[ids]

    @staticmethod
    def add(factors, x, y):
        """Add to the outputs `(b, t, m)` in place."""
        y.baddbmm_(torch.bmm(x, factors[0]), factors[1])


def peft_model(model, rank, count):
    """A PEFT model with LoRAs named a0, a1, ... in the dtype of the layers."""
    from peft import LoraConfig, get_peft_model

    names = [str(i) for i in range(len(model.layers))]
    with warnings.catch_warnings(action="ignore"):
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=names, init_lora_weights=False)
        peft = get_peft_model(model, config, adapter_name="a0")
        for i in range(1, count):
            peft.add_adapter(f"a{i}", config)
    return peft.to(model.layers[0].base_layer.weight.dtype).eval()


def interleave(functions, repeats, device):
    """Median seconds of every function, which are called in turn after a call of each to warm up.

    On one thread of a CPU these are seconds of the thread, without those in which other processes had the core.
    """
    own_thread = torch.device(device).type == "cpu" and torch.get_num_threads() == 1
    now = time.thread_time if own_thread else time.perf_counter
    for function in functions:
        function()
    seconds = [[] for _ in functions]
    while len(seconds[0]) < repeats or sum(map(sum, seconds)) < LEAST_SECONDS:
        for function, taken in zip(functions, seconds, strict=True):
            common.synchronize(device)
            start = now()
            function()
            common.synchronize(device)
            taken.append(now() - start)
    return [statistics.median(taken) for taken in seconds]


def copy_bandwidth(device):
    """Bytes per second of a plain copy, read and written."""
    target = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
    origin = torch.zeros_like(target)
    (seconds,) = interleave([partial(target.copy_, origin)], 7, device)
    return 2 * COPY_BYTES / seconds

"""Rows of adapters.py: switching adapters, several adapters in one batch, bytes of the files."""

import gc
import tempfile
from functools import partial
from pathlib import Path

import adapters_common as own
import torch

from hf_farms.s2ft.adapters.router import AdapterRouter


def switching(d, dtype, device, *, ranks, layers=2, repeats=9):
    """Replace a merged adapter by another one: scatters, the whole method, merged LoRA, and PEFT without merging."""
    copied = own.copy_bandwidth(device)
    for rank in ranks:
        for side in own.SIDES:
            yield _switch(d, own.DTYPES[dtype], device, rank, side, layers, repeats, copied)
            gc.collect()


def _switch(d, dtype, device, rank, side, layers, repeats, copied):
    model = own.Layers(d, layers, dtype, device)
    one, other = (own.random_adapter(model, side, 2 * rank, seed) for seed in range(2))
    plans = [_scatters(model, out, into, device) for out, into in ((one, other), (other, one))]
    factors = [
        (torch.randn(d, rank, dtype=dtype, device=device) / d, torch.randn(rank, d, dtype=dtype, device=device))
        for _ in range(2)
    ]
    bare, loras = own.Layers(d, layers, dtype, device), own.Layers(d, layers, dtype, device)
    peft = own.peft_model(own.Layers(d, layers, dtype, device), rank, 2)
    one.merge(model)
    # Each call is a switch there and one back.
    seconds = own.interleave(
        [
            partial(_there_and_back, bare, plans),
            partial(_switch_methods, model, one, other),
            partial(_switch_loras, loras, factors),
            partial(_set_adapters, peft),
        ],
        repeats,
        device,
    )
    scatter, method, lora, chosen = (value / 2 for value in seconds)
    per_token, base = _cost_per_token(peft, d, dtype, device, repeats)
    moved = sum(2 * values.nbytes for _, _, values in plans[0])
    return {
        "d": d,
        "dtype": str(dtype).removeprefix("torch."),
        "channels": f"{2 * rank} {side}",
        "r": rank,
        "scatter_ms": 1e3 * scatter / layers,
        "switch_ms": 1e3 * method / layers,
        "lora_ms": 1e3 * lora / layers,
        "lora/scatter": lora / scatter,
        "lora/switch": lora / method,
        "of_copy": moved / scatter / copied,
        "peft_set_adapter_ms": 1e3 * chosen / layers,
        "peft_us_per_token": 1e6 * per_token / layers,
        "layer_us_per_token": 1e6 * base / layers,
    }


def _scatters(model, out, into, device):
    """A switch as one scatter: channels of both, with the values of the new one, or the base where it has none."""
    plan = []
    for name, patch in out.patches.items():
        new, whole = into.patches[name], model.get_parameter(name).detach().cpu().clone()
        whole.index_copy_(patch.dim, patch.indices, patch.base).index_copy_(new.dim, new.indices, new.values)
        union = torch.cat([patch.indices, new.indices]).unique()
        plan.append((patch.dim, union.to(device), whole.index_select(patch.dim, union).to(device)))
    return plan


def _there_and_back(model, plans):
    for plan in plans:
        for layer, (dim, union, values) in zip(model.layers, plan, strict=True):
            if dim == 0:
                layer.weight.index_copy_(0, union, values)
            else:
                # Row by row: index_copy goes through the rows once for each channel.
                integers = {2: torch.int16, 4: torch.int32}[values.dtype.itemsize]
                layer.weight.view(integers).scatter_(1, union.expand(len(values), -1), values.view(integers))


def _switch_methods(model, one, other):
    one.switch(model, other)
    other.switch(model, one)


def _switch_loras(model, factors):
    for (b, a), (new_b, new_a) in (factors, factors[::-1]):
        for layer in model.layers:
            layer.weight.addmm_(b, a, alpha=-1)
            layer.weight.addmm_(new_b, new_a)


def _set_adapters(peft):
    for name in ("a1", "a0"):
        peft.set_adapter(name)
    peft.requires_grad_(False)


def _cost_per_token(peft, d, dtype, device, repeats, tokens=16):
    """Seconds per token that unmerged LoRA adds, and those of the layers."""
    x = torch.randn(tokens, 1, d, dtype=dtype, device=device)
    base = [module.base_layer for module in peft.modules() if hasattr(module, "base_layer")]
    whole, plain = own.interleave([partial(peft, x), lambda: [layer(x) for layer in base]], repeats, device)
    return (whole - plain) / tokens, plain / tokens


def parallel(d, dtype, device, *, rank, adapters, tokens, layers=2, repeats=9):
    """One sample for each adapter: AdapterRouter, batched LoRA, PEFT's mixed batch; whole and added part."""
    for count in adapters:
        for length in tokens:
            for side in own.SIDES:
                yield _mixed_batch(d, own.DTYPES[dtype], device, rank, count, length, side, layers, repeats)
                gc.collect()


def _mixed_batch(d, dtype, device, rank, count, length, side, layers, repeats):
    model = own.Layers(d, layers, dtype, device)
    peft = own.peft_model(model.twin(), rank, count)
    lora = [own.GatheredLoRA(d, rank, count, dtype, device) for _ in model.layers]
    router = AdapterRouter(model, [own.random_adapter(model, side, 2 * rank, seed) for seed in range(count)])
    plain = model.twin()
    # In another order than the adapters, so that both copy those of the batch.
    ids = torch.randperm(count, generator=torch.Generator().manual_seed(0)).to(device)
    order = ids.tolist()
    x = torch.randn(count, length, d, dtype=dtype, device=device)
    y = plain(x)
    kept = [factors.gathered(ids) for factors in lora]

    def whole_lora():
        for layer, factors, own_lora in zip(plain.layers, kept, lora, strict=True):
            own_lora.add(factors, x, layer(x))

    def added_lora(*, gather):
        for factors, own_lora in zip(kept, lora, strict=True):
            own_lora.add(own_lora.gathered(ids) if gather else factors, x, y)

    def choose():
        with router.using(order):
            pass

    with router.using(order):
        products = [product for chosen in router._products.values() for product in chosen]
        functions = [
            partial(plain, x),
            partial(model, x),
            whole_lora,
            partial(peft, x, adapter_names=[f"a{i}" for i in order]),
            lambda: [product.add(x, y) for product in products],
            partial(added_lora, gather=False),
            partial(added_lora, gather=True),
            choose,
        ]
        seconds = own.interleave(functions, repeats, device)
    base, routed, gathered, mixed, added, lora_added, lora_gathering, choosing = (1e3 * s / layers for s in seconds)
    return {
        "d": d,
        "dtype": str(dtype).removeprefix("torch."),
        "channels": f"{2 * rank} {side}",
        "r": rank,
        "adapters": count,
        "tokens": length,
        "layer_ms": base,
        "router_ms": routed,
        "lora_ms": gathered,
        "peft_ms": mixed,
        "router_added_ms": added,
        "lora_added_ms": lora_added,
        "lora_gathering_ms": lora_gathering,
        "lora/router added": lora_added / added,
        "peft/router": mixed / routed,
        "peft/router added": (mixed - base) / added,
        "using_ms": choosing,
    }


def sizes(d, dtype, *, ranks, layers=2):
    """Bytes of an adapter's file and of a LoRA's, for a layer of as many trained parameters, and exported exactly."""
    for rank in ranks:
        model = own.Layers(d, layers, own.DTYPES[dtype], "cpu")
        adapter = own.random_adapter(model, "inputs", 2 * rank, 0)
        written = {}
        for include_base in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                adapter.save_pretrained(folder, include_base=include_base)
                written[include_base] = sum(file.stat().st_size for file in Path(folder).iterdir()) / layers / 2**10
        itemsize = own.DTYPES[dtype].itemsize
        yield {
            "d": d,
            "dtype": dtype,
            "channels": f"{2 * rank} inputs",
            "patch_kib": written[False],
            "patch_with_base_kib": written[True],
            "lora_of_as_many_parameters_kib": 2 * rank * d * itemsize / 2**10,
            "exported_lora_kib": 2 * rank * 2 * d * itemsize / 2**10,
        }

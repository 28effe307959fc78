"""apply_s2ft and fully_shard in a loop of one's own: two processes against one, state dicts, and what is refused."""

import re

import pytest
import torch
from fsdp2 import NEEDS_FSDP2
from launch import results_of
from models import tiny

from hf_farms import analyze

pytestmark = [NEEDS_FSDP2, pytest.mark.filterwarnings("ignore:.*loss_type.*")]

SCRIPT = """
import sys
import torch
from fsdp2 import *
from families import family_model
from models import tiny
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import Shard
from trainers import arguments
from transformers import TrainerControl, TrainerState
from hf_farms import KeepZerosCallback, PruneConfig, S2FTAdapter, S2FTCallback, S2FTConfig, analyze, apply_s2ft, prune
from hf_farms import restore, write_back
from hf_farms.s2ft.surgery import selective_layers
folder = sys.argv[1]
torch.distributed.init_process_group("gloo")
ids = torch.randint(0, 100, (4, 12), generator=torch.Generator().manual_seed(0))
ALL = ("q", "k", "v", "o", "gate", "up", "down")
UNEVEN = {"hidden_size": 33, "intermediate_size": 49, "num_attention_heads": 3, "num_key_value_heads": 3}
WHOLE = StateDictOptions(full_state_dict=True)
result = {"distances": {}, "keys": {}}


def llama(dtype=torch.float64, **changes):
    return tiny("llama", dtype=dtype, num_hidden_layers=2, **changes)


def train(model, batch, steps=3):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def far(a, b):
    return max((a[name] - b[name]).abs().max().item() for name in b if b[name].is_floating_point())


cases = {
    "o and down": (llama, {"roles": ("o", "down")}),
    "all roles": (llama, {"roles": ALL}),
    "two products": (llama, {"roles": ALL, "write_back": False}),
    "uneven": (lambda: llama(**UNEVEN), {"roles": ALL}),
    "gpt2": (lambda: family_model("gpt2").double(), {"roles": ("q", "k", "v", "o", "up", "down")}),
}
for name, (make, options) in cases.items():
    config = S2FTConfig(budget=0.3, **options)
    one, many = make(), make()
    start = {key: tensor.clone() for key, tensor in one.state_dict().items()}
    apply_s2ft(one, config)
    apply_s2ft(many, config)
    train(one, ids)
    train(sharded(many), ids.chunk(2)[RANK])
    gathered = get_model_state_dict(many, options=WHOLE)
    expected = whole(one)
    result["distances"][name] = [
        far(gathered, one.state_dict()), far(whole(many), expected), far(start, one.state_dict())
    ]
    result["keys"][name] = sorted(gathered.keys() ^ start.keys())

# A full state dict of another model is loaded, and the slices follow it.
model, other = llama(torch.float32), llama(torch.float32, seed=1)
apply_s2ft(model, S2FTConfig(budget=0.3, roles=ALL))
sharded(model)
loaded = {}
for name, options in (("each", WHOLE), ("first", StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))):
    source = llama(torch.float32, seed=1 + len(loaded)).state_dict()
    set_model_state_dict(model, dict(source) if name == "each" or RANK == 0 else {}, options=options)
    values = whole(model)
    slices = [layer.engine.whole(layer.slice_of_weight()) for _, layer in selective_layers(model)]
    trained = [layer.engine.whole(layer.selected) for _, layer in selective_layers(model)]
    loaded[name] = far(values, source), all(map(torch.equal, slices, trained))
result["loaded"] = loaded

# Slices that something else has changed.
for _, layer in selective_layers(model):
    layer.selected.data.mul_(0.5)
write_back(model)
slices = [layer.engine.whole(layer.slice_of_weight()) for _, layer in selective_layers(model)]
result["written"] = all(map(torch.equal, slices, [part * 0.5 for part in trained]))
adapter = S2FTAdapter.from_model(model)
result["adapter"] = {name: patch.values for name, patch in adapter.patches.items()}
result["gathered"] = {name: tensor for name, tensor in get_model_state_dict(model, options=WHOLE).items()}

plain = sharded(llama(torch.float32))
result["alphas"] = [block.alpha for block in analyze(plain).blocks]


def refused(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error} {getattr(error, 'hint', '')}"
    return None


def stepped(shard, layout="indexed"):
    model = llama()
    apply_s2ft(model, S2FTConfig(budget=0.3, layout=layout))
    shard(model)
    train(model, ids, steps=1)


def begin(callback, model):
    given = {"model": model, "optimizer": torch.optim.SGD(model.parameters())}
    callback.on_train_begin(arguments(folder), TrainerState(), TrainerControl(), **given)


def old():
    model = llama()
    model.model.layers[0] = FullyShardedDataParallel(model.model.layers[0], device_id=torch.device("cpu"))
    return model


def half():
    model = llama()
    apply_s2ft(model, S2FTConfig(budget=0.3))
    fully_shard(model.model.layers[0])
    S2FTAdapter.from_model(model)


def by_columns(model):
    for block in model.model.layers:
        fully_shard(block, shard_placement_fn=lambda parameter: Shard(parameter.ndim - 1))


result["refused"] = {
    "apply": refused(lambda: apply_s2ft(plain, S2FTConfig(budget=0.3))),
    "permuted": refused(lambda: stepped(sharded, "permuted")),
    "columns": refused(lambda: stepped(by_columns)),
    "half": refused(half),
    "restore": refused(lambda: restore(model)),
    "merge": refused(lambda: adapter.merge(plain)),
    "prune": refused(lambda: prune(plain, PruneConfig(method="magnitude", allocation="uniform"))),
    "s2ft under fsdp1": refused(lambda: begin(S2FTCallback(S2FTConfig(budget=0.3)), old())),
    "keep zeros under fsdp1": refused(lambda: begin(KeepZerosCallback(), old())),
    "analyze under fsdp1": refused(lambda: analyze(old())),
    "prune under fsdp1": refused(lambda: prune(old(), PruneConfig(method="magnitude", allocation="uniform"))),
    "apply under fsdp1": refused(lambda: apply_s2ft(old(), S2FTConfig(budget=0.3))),
    "adapter under fsdp1": refused(lambda: S2FTAdapter.from_model(old())),
    "merge under fsdp1": refused(lambda: adapter.merge(old())),
}
torch.save(result, f"{folder}/{RANK}.pt")
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return results_of(SCRIPT, tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("case", ["o and down", "all roles", "two products", "uneven", "gpt2"])
def test_two_processes_equal_one(two, case):
    for result in two:
        weights, slices, moved = result["distances"][case]
        assert max(weights, slices) < 1e-12
        assert moved > 1e-2


def test_full_state_dicts_are_those_of_the_plain_model(two):
    assert set(map(tuple, two[0]["keys"].values())) == {()}


@pytest.mark.parametrize("by", ["each", "first"])
def test_slices_follow_a_full_state_dict(two, by):
    """That each process has, and that the first one sends to the others."""
    assert [result["loaded"][by] for result in two] == [(0.0, True)] * 2


def test_slices_that_something_else_has_changed(two):
    first, second = two
    assert first["written"]
    assert second["written"]
    for name, values in first["adapter"].items():
        assert torch.equal(values, second["adapter"][name])
        assert set(values.flatten().tolist()) <= set(first["gathered"][name].flatten().tolist())


def test_spectra_of_sharded_weights(two):
    expected = [block.alpha for block in analyze(tiny("llama", num_hidden_layers=2)).blocks]
    for result in two:
        assert result["alphas"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("apply", r"ModelError: weights must be whole on every process for S2FT, got a sharded .* before fully_shard"),
        ("permuted", r"ModelError: layout must be 'indexed' for S2FT under FSDP2, got 'permuted'"),
        (
            "columns",
            r"ModelError: weights must be sharded by rows over one dimension of the mesh .* got \(Shard",
        ),
        ("half", r"ModelError: trained layers must all be stored by one engine for S2FT, got FSDP2 \(model.layers.0"),
        ("restore", "ModelError: model must have whole weights to be restored, got one that FSDP2 has sharded"),
        ("merge", "ModelError: weights must be whole on every process for S2FT, got a sharded one"),
        ("prune", r"ModelError: weights must be whole on every process to be overwritten, got a sharded one in model"),
        ("s2ft under fsdp1", r"ValueError: weights must .* for S2FTCallback, got FSDP1\. Set fsdp_version: 2"),
        (
            "keep zeros under fsdp1",
            r"ValueError: weights must .* for KeepZerosCallback, got FSDP1\. Set fsdp_ver",
        ),
        *(
            (
                f"{name} under fsdp1",
                r"ModelError: weights must be whole or sharded by FSDP2, got a model that FSDP1 has",
            )
            for name in ("analyze", "prune", "apply", "adapter", "merge")
        ),
    ],
)
def test_refusals(two, what, why):
    for result in two:
        assert re.match(why, result["refused"][what])

"""Units of a structure, and how they change places, on matrices small enough to write the answer down."""

import pytest
import torch
from families import family_model
from models import tiny
from torch import nn

from hf_farms.blocks import ModelBlockSource
from hf_farms.blocks.coupling import (
    Member,
    Structure,
    coupled_structures,
    module_channels,
    permute_structure,
    undo_orders,
)
from hf_farms.blocks.layers import LayerMetadata, Part


def structures(model, block=0, *, whole_groups):
    source = ModelBlockSource(model)
    return coupled_structures(source.metadata(block), source.config, whole_groups=whole_groups)


def member(structure, role):
    return next(m for m in structure.members if m.layer.role == role)


def test_units_of_grouped_queries(llama):
    heads, channels = structures(llama, whole_groups=False)
    groups, _ = structures(llama, whole_groups=True)
    assert (heads.kind, heads.units, channels.kind, channels.units) == ("attention", 4, "feed_forward", 48)
    assert groups.units == 2
    # k and v belong to two heads each, so to none where heads are units.
    assert [(m.layer.role, m.side, m.width) for m in heads.members] == [("q", "rows", 8), ("o", "columns", 8)]
    assert [(m.layer.role, m.side, m.width) for m in groups.members] == [
        *(("q", "rows", 16), ("k", "rows", 8), ("v", "rows", 8), ("o", "columns", 16))
    ]
    assert [(m.layer.role, m.side, m.width) for m in channels.members] == [
        *(("gate", "rows", 1), ("up", "rows", 1), ("down", "columns", 1))
    ]
    assert groups.trained(("o", "v", "down")) == (member(groups, "v"), member(groups, "o"))
    assert member(groups, "o").weights_per_unit == 16 * 32
    assert member(groups, "k").channels([1, 0]).tolist() == [*range(8, 16), *range(8)]
    assert member(groups, "k").channels([]).tolist() == []


def test_a_config_without_heads_has_no_attention():
    class Config:
        model_type = "unknown"

    source = ModelBlockSource(tiny("llama"))
    (only,) = coupled_structures(source.metadata(0), Config(), whole_groups=True)
    assert only.kind == "feed_forward"


def test_the_number_of_groups_is_what_the_shapes_say():
    """Falcon calls it num_kv_heads."""
    for name, groups in (("falcon", 2), ("falcon_multi_query", 1), ("falcon_old", 4)):
        attention, _ = structures(family_model(name), whole_groups=True)
        assert attention.units == groups
        assert {m.layer.role for m in attention.members} == set("qkvo")


@pytest.mark.parametrize(
    ("name", "roles"),
    [("llama", "qkv"), ("phi3", "qkv"), ("gpt2", "qkv"), ("gpt_neox", "qkv"), ("falcon", "qkv")],
)
def test_rows_of_a_module_are_those_of_its_parts(name, roles):
    """The bias of a fused module is found by the same rows as its weight."""
    model = family_model(name)
    source = ModelBlockSource(model)
    for layer in source.metadata(0).layers:
        weight = model.get_parameter(layer.parameter).detach()
        weight = weight.mT if layer.part.transposed else weight
        rows = module_channels(layer, len(weight))
        assert torch.equal(weight[rows], layer.part.of(model.get_parameter(layer.parameter)))
    fused = [layer for layer in source.metadata(0).layers if layer.role in roles]
    parts = [module_channels(layer, 96 if name == "gpt2" else sum(part.shape[0] for part in fused)) for layer in fused]
    if name != "llama":
        assert sorted(torch.cat(parts).tolist()) == list(range(sum(len(part) for part in parts)))


class Twins(nn.Module):
    """`(in 3) -> up (4) -> down (2)`, with a bias."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(3, 4), nn.Linear(4, 2)

    def structure(self):
        up = LayerMetadata("up", "up", (4, 3), parameter="up.weight")
        down = LayerMetadata("down", "down", (2, 4), parameter="down.weight")
        return Structure("feed_forward", 2, (Member(up, "rows", 2), Member(down, "columns", 2)))


def test_a_permutation_written_down():
    torch.manual_seed(0)
    model = Twins()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kept = dict(model.named_parameters())
    orders = permute_structure(model, model.structure(), [1, 0])
    rows = [2, 3, 0, 1]
    assert torch.equal(model.up.weight, before["up.weight"][rows])
    assert torch.equal(model.up.bias, before["up.bias"][rows])
    assert torch.equal(model.down.weight, before["down.weight"][:, rows])
    assert torch.equal(model.down.bias, before["down.bias"])
    assert all(kept[name] is parameter for name, parameter in model.named_parameters())
    assert {module: list(by_parameter) for module, by_parameter in orders.items()} == {
        model.up: ["weight", "bias"],
        model.down: ["weight"],
    }
    assert orders[model.up]["bias"][0].tolist() == rows
    assert orders[model.down]["weight"][1].tolist() == rows


@pytest.mark.parametrize("name", ["llama", "qwen2", "phi3", "gpt2", "gpt_neox", "gpt_oss", "bert"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_what_was_moved_goes_back_bitwise(name, dtype):
    model = family_model(name).to(dtype)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    everything = [structure for block in range(2) for structure in structures(model, block, whole_groups=True)]
    for structure in everything:
        order = torch.randperm(structure.units, generator=torch.Generator().manual_seed(structure.units)).tolist()
        order = order if order != sorted(order) else order[::-1]
        orders = permute_structure(model, structure, order)
        names = {module: path for path, module in model.named_modules()}
        for module, by_parameter in orders.items():
            for parameter, by_dim in by_parameter.items():
                moved, full = getattr(module, parameter), f"{names[module]}.{parameter}"
                assert torch.equal(undo_orders(moved, by_dim), before[full])
                assert not torch.equal(moved, before[full])
                assert all(sorted(order.tolist()) == list(range(moved.shape[d])) for d, order in by_dim.items())
        moved = {f"{names[module]}.{parameter}" for module, found in orders.items() for parameter in found}
        biases = {n for n in before if n.endswith("bias") and f"{n[:-4]}weight" in moved}
        rows = {member.layer.parameter for member in structure.members if member.side == "rows"}
        assert {n for n in biases if f"{n[:-4]}weight" in rows} <= moved
        # The bias of o and down is of the outputs, which stay.
        assert not {n for n in biases if f"{n[:-4]}weight" not in rows} & moved
    if name == "gpt_oss":
        assert not torch.equal(model.model.layers[0].self_attn.sinks, before["model.layers.0.self_attn.sinks"])
    fixed = {n for n in before if "norm" in n or "embed" in n or "wte" in n or "lm_head" in n}
    assert fixed
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n in fixed)


def test_undoing_gives_a_copy():
    tensor = torch.arange(6.0).reshape(2, 3)
    order = torch.tensor([2, 0, 1])
    found = undo_orders(tensor[:, order], {1: order})
    assert torch.equal(found, tensor)
    both = tensor[[1, 0]][:, order]
    assert torch.equal(undo_orders(both, {0: torch.tensor([1, 0]), 1: order}), tensor)
    found[0, 0] = 9
    assert tensor[0, 0] == 0


def test_parts_of_groups():
    """Two groups of three rows: the layer is the middle one of each."""
    layer = LayerMetadata("a.k", "k", (2, 5), parameter="a.weight", part=Part(groups=2, start=1, stop=2))
    assert module_channels(layer, 6).tolist() == [1, 4]
    flipped = LayerMetadata("a.k", "k", (2, 5), parameter="a.weight", part=Part(transposed=True, start=2, stop=4))
    assert module_channels(flipped, 6).tolist() == [2, 3]

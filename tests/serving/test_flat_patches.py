"""Adapters as flat patches, on plain tensors."""

import pytest
import torch
from adapters import same, state
from families import family_model
from models import tiny
from random_adapters import merged, random_adapter

from hf_farms import S2FTAdapter
from hf_farms.errors import ModelError
from hf_farms.serving.flat_patches import flat_indices, flat_patches

# Inputs and outputs of weights, with and without overlap.
ROLES = ("q", "v", "o", "up", "down")


@pytest.fixture(scope="module")
def base():
    return tiny("llama", dtype=torch.bfloat16)


def written(model, patches):
    """Write flat patches, each position once."""
    with torch.no_grad():
        for patch in patches:
            assert len(patch.indices.unique()) == len(patch.indices)
            weight = model.get_parameter(patch.name)
            assert (tuple(weight.shape), weight.dtype) == (patch.shape, patch.values.dtype)
            weight.view(-1)[patch.indices.long()] = patch.values
    return model


def copy_of(model):
    copied = tiny("llama", dtype=torch.bfloat16)
    copied.load_state_dict(model.state_dict())
    return copied


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_positions_are_those_of_the_values(name):
    """In both orders of a stored weight."""
    adapter = random_adapter(family_model(name), roles=("q", "up", "o", "down"))
    assert {patch.dim for patch in adapter.patches.values()} == {0, 1}
    for patch in adapter.patches.values():
        weight = torch.arange(patch.shape[0] * patch.shape[1]).view(patch.shape)
        expected = weight.index_select(patch.dim, patch.indices).flatten()
        assert torch.equal(flat_indices(patch).long(), expected)


def test_an_adapter_is_written_and_taken_out(base):
    adapter, model = random_adapter(base, 1, roles=ROLES), copy_of(base)
    written(model, flat_patches(None, adapter))
    assert same(state(model), state(merged(copy_of(base), adapter)))
    written(model, flat_patches(adapter, None))
    assert same(state(model), state(base))


@pytest.mark.parametrize("other", ["overlapping", "other-side", "other-weights", "the-same"])
def test_a_switch_writes_the_channels_of_both(base, other):
    old = random_adapter(base, 1, roles=("o", "down"), channels=(8, 12))
    new = {
        "overlapping": lambda: random_adapter(base, 2, roles=("o", "down"), channels=(8, 12)),
        "other-side": lambda: on_outputs(base),
        "other-weights": lambda: random_adapter(base, 2, roles=("q", "up")),
        "the-same": lambda: old,
    }[other]()
    model = merged(copy_of(base), old)
    patches = flat_patches(old, new)
    assert len({patch.name for patch in patches}) == len(patches)
    written(model, patches)
    assert same(state(model), state(merged(copy_of(base), new)))
    written(model, flat_patches(new, old))
    assert same(state(model), state(merged(copy_of(base), old)))


def on_outputs(base):
    """An adapter of outputs of o and down, whose rows cross the columns of others."""
    model = copy_of(base)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight[3:6] += 1
    return S2FTAdapter.from_training(model, base)


def test_no_adapters_are_no_patches():
    assert flat_patches(None, None) == []


def test_adapters_of_two_bases_are_refused(base):
    shared = {"roles": ("down",), "channels": (20, 20)}
    old, other = random_adapter(base, 1, **shared), copy_of(base)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(1)
    with pytest.raises(ModelError, match=r"of one base model, got different slices of the base in model\.layers\.0"):
        flat_patches(old, random_adapter(other, 2, **shared))
    wider = random_adapter(tiny("llama", dtype=torch.float32), 2, **shared)
    with pytest.raises(ModelError, match=r"dtypes that differ in .*bfloat16, and .*float32"):
        flat_patches(old, wider)


@pytest.mark.parametrize("patches", [lambda bare: flat_patches(None, bare), lambda bare: flat_patches(bare, None)])
def test_slices_of_the_base_are_needed(base, patches):
    with pytest.raises(ValueError, match=r"adapter must have the slices of its base .* include_base=True"):
        patches(random_adapter(base, include_base=False))

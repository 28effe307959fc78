"""Adapters that were compared with a model once: later changes between them read no weights, and miss no change."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from adapters import WEIGHT, one_layer, same, state
from models import tiny

from hf_farms.errors import ModelError
from hf_farms.s2ft.adapters.channels import Channels

OTHERS = "weights must be those of the adapter until it is unmerged"
OTHER_BASE = "model must be the base model of the adapter"


@pytest.fixture
def compared():
    """A model with the first of two adapters of some shared channels merged; both were compared with it."""
    model, (one, two) = tiny("llama"), (one_layer([1, 5]), one_layer([2, 5, 6]))
    one.merge(model)
    one.switch(model, two)
    two.switch(model, one)
    return model, one, two


@pytest.fixture
def comparisons(monkeypatch):
    """The number of entries that each comparison with a weight reads."""
    read, original = [], Channels.read

    def count(self, matrix):
        read.append(self.values.numel())
        return original(self, matrix)

    monkeypatch.setattr(Channels, "read", count)
    return read


def test_a_second_switch_reads_no_whole_channels(compared, comparisons):
    model, one, two = compared
    one.switch(model, two)
    two.unmerge(model)
    with one.on(model):
        pass
    assert comparisons == []
    assert same(state(model), state(tiny("llama")))


def add_one(parameter):
    with torch.no_grad():
        parameter.add_(1)


def add_one_through_data(parameter):
    parameter.data.add_(1)


def replace_data(parameter):
    parameter.data = parameter.data + 1


def step_of_a_fused_optimizer(parameter):
    """The default optimizer of the Trainer, whose writes torch does not count."""
    parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW([parameter], lr=0.01, fused=True).step()


CHANGES = [add_one, add_one_through_data, replace_data, step_of_a_fused_optimizer]


@pytest.mark.parametrize("change", CHANGES)
def test_weights_that_changed_since_are_seen(compared, change):
    model, one, two = compared
    change(model.get_parameter(WEIGHT))
    before = state(model)
    for call in (lambda: one.unmerge(model), lambda: one.switch(model, two)):
        with pytest.raises(ModelError, match=OTHERS):
            call()
        assert same(state(model), before)


@pytest.mark.parametrize("change", CHANGES)
def test_a_base_that_changed_since_is_seen(compared, change):
    model, one, two = compared
    one.unmerge(model)
    change(model.get_parameter(WEIGHT))
    before = state(model)
    for adapter in (one, two):
        with pytest.raises(ModelError, match=OTHER_BASE):
            adapter.merge(model)
        assert same(state(model), before)


def test_a_merge_after_a_change_does_not_vouch_for_adapters_of_before(compared):
    """The third adapter fits the changed model, and writes to the weight last."""
    model, one, two = compared
    one.unmerge(model)
    with torch.no_grad():
        model.get_parameter(WEIGHT)[:, 1] += 1
    third = one_layer([0, 3])
    third.merge(model)
    with pytest.raises(ModelError, match=OTHER_BASE):
        third.switch(model, one)
    third.switch(model, two)
    two.unmerge(model)
    with pytest.raises(ModelError, match=OTHER_BASE):
        one.merge(model)


def test_an_adapter_of_the_same_channels_is_not_taken_for_the_merged_one(compared):
    """It differs in one entry, which a look at some rows does not show."""
    model, one, _ = compared
    patch = one.patches[WEIGHT]
    values = patch.values.clone()
    values[1, 0] += 1
    other = replace(one, patches={WEIGHT: replace(patch, values=values)})
    with pytest.raises(ModelError, match=OTHERS):
        other.unmerge(model)
    one.unmerge(model)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_of_a_model_compare_again(compared, comparisons, copied):
    model, one, two = compared
    again = copied(model)
    one.switch(again, two)
    assert comparisons
    two.unmerge(again)
    one.unmerge(model)
    assert same(state(again), state(model))


def test_weights_made_in_inference_mode_are_compared_every_time():
    with torch.inference_mode():
        model, (one, two) = tiny("llama"), (one_layer([1, 5]), one_layer([2, 5, 6]))
        before = state(model)
        one.merge(model)
        one.switch(model, two)
        two.switch(model, one)
        model.get_parameter(WEIGHT)[0, 1] += 1
        with pytest.raises(ModelError, match=OTHERS):
            one.unmerge(model)
        model.get_parameter(WEIGHT)[0, 1] = one.patches[WEIGHT].values[0, 0]
        one.unmerge(model)
        assert same(state(model), before)


@pytest.mark.parametrize("dim", [0, 1])
def test_columns_and_rows_of_both_are_written_once(dim):
    """`over` keeps every channel once, with the own values where both have it."""
    matrix = torch.arange(30.0).reshape(5, 6)
    first = Channels(dim, torch.tensor([0, 2]), torch.full((5, 2) if dim else (2, 6), 1.0))
    second = Channels(dim, torch.tensor([2, 3]), torch.full((5, 2) if dim else (2, 6), 2.0))
    expected = matrix.clone()
    second.write(expected)
    first.write(expected)
    joined = first.over(second)
    assert sorted(joined.indices.tolist()) == [0, 2, 3]
    joined.write(matrix)
    assert torch.equal(matrix, expected)
    assert first.over(first) is first


def test_a_weight_that_was_replaced_in_inference_mode_is_compared(compared):
    """Torch keeps no version counter for it."""
    model, one, two = compared
    layer = model.get_submodule(WEIGHT.rpartition(".")[0])
    with torch.inference_mode():
        layer.weight = torch.nn.Parameter(layer.weight.clone(), requires_grad=False)
        one.switch(model, two)
        layer.weight[0, 2] += 1
        with pytest.raises(ModelError, match=OTHERS):
            two.unmerge(model)
        layer.weight[0, 2] = two.patches[WEIGHT].values[0, 0]
        two.unmerge(model)
        assert same(state(model), state(tiny("llama")))

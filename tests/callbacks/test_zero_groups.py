"""Layer-wise rates of the parts of flat tensors, against an optimizer with real groups."""

import pytest
import torch
from torch import nn

from hf_farms.callbacks.zero_fragments import FlatTensors, Fragment, FragmentError, find_fragments
from hf_farms.callbacks.zero_groups import FragmentLayout, ZeroGroups
from hf_farms.processes import ONE_PROCESS

FIRST, SECOND = ("first",), ("second",)
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
}
STEPS = [{"first": 0.5, "second": 2.0}] * 2 + [{"first": 1.0, "second": 1.0}, {"first": 3.0, "second": 0.0}]


def parameters():
    """Three parameters whose elements stand in a flat tensor of 40, with padding at its end."""
    source = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(size, generator=source)) for size in (8, 16, 9)]


def gradient(step):
    return torch.randn(40, generator=torch.Generator().manual_seed(step))


def flat_of(values):
    return torch.cat([*(p.detach() for p in values), torch.zeros(40 - 33)])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parts_of_a_flat_tensor_equal_real_groups_bit_by_bit(name):
    values = parameters()
    keys = {values[0]: FIRST, values[1]: SECOND}
    flat = flat_of(values)
    optimizer = OPTIMIZERS[name]([{"params": [flat], "weight_decay": 0.1}])
    fragments = [Fragment(0, 8, values[0]), Fragment(8, 24, values[1]), Fragment(24, 33, values[2])]
    layout = FragmentLayout(FlatTensors({flat: fragments}, {flat: 0}, dict.fromkeys(values, 0)), keys)
    groups = ZeroGroups(optimizer, keys, "lr", layout)
    real = [part.detach().clone() for part in flat.split([8, 16, 16])]
    by_hand = OPTIMIZERS[name]([{"params": [part], "weight_decay": 0.1} for part in real])
    for step, factors in enumerate(STEPS):
        groups.set_factors(factors)
        flat.grad = gradient(step)
        optimizer.step()
        for group, part, factor in zip(by_hand.param_groups, real, [*factors.values(), 1.0], strict=True):
            group["lr"] = 0.1 * factor
            part.grad = gradient(step).split([8, 16, 16])[[id(p) for p in real].index(id(part))]
        by_hand.step()
        assert torch.equal(flat, torch.cat(real))
        assert optimizer.param_groups[0]["params"] == [flat]
        assert optimizer.param_groups[0]["lr"] == 0.1
        assert list(optimizer.state) == [flat]
    for key, value in optimizer.state[flat].items():
        parts = [by_hand.state[part][key] for part in real]
        expected = torch.cat(parts) if value.shape == flat.shape else parts[0]
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(expected)), key
    assert {rate.lr for rate in groups.rates().values()} == {0.1 * 3.0, 0.0, 0.1}
    groups.remove()
    assert not optimizer._optimizer_step_pre_hooks


class Address:
    def __init__(self, start, numel):
        self.start, self.numel = start, numel


class Zero:
    """Places of the parameters, as ZeRO-1 and 2 keep them."""

    def __init__(self, values, shift=0):
        start = shift
        for value in values:
            value._hp_mapping = self
            self_of = Zero.__new__(Zero)
            self_of.param_group_index, self_of.lp_fragment_address = 0, Address(0, value.numel())
            self_of.hp_fragment_address = Address(start, value.numel())
            value._hp_mapping = self_of
            start += value.numel()


def search(values, flat, shift=0):
    zero = Zero(values, shift)
    named = {f"p{number}": value for number, value in enumerate(values)}
    return find_fragments(zero, torch.optim.SGD([flat]), named, ONE_PROCESS)


def test_fragments_are_compared_with_the_weights():
    values = parameters()
    flat = flat_of(values)
    values[1].data[0] = flat[8] = torch.nan
    found = search(values, flat)
    assert [(f.start, f.stop) for f in found.fragments[flat]] == [(0, 8), (8, 24), (24, 33)]
    assert set(found.parameter_groups.values()) == {0}
    with pytest.raises(FragmentError, match="the flat tensors have other values than p0"):
        search(values, flat, shift=1)


def test_missing_parts_and_attributes_are_found():
    values = parameters()
    flat = flat_of(values)
    search(values, flat)
    values[2]._hp_mapping = None
    with pytest.raises(FragmentError, match="the flat tensors do not hold all of p2"):
        find_fragments(None, torch.optim.SGD([flat]), {"p2": values[2]}, ONE_PROCESS)
    del values[2]._hp_mapping
    with pytest.raises(FragmentError, match=r"AttributeError: .*_hp_mapping"):
        find_fragments(None, torch.optim.SGD([flat]), {"p2": values[2]}, ONE_PROCESS)

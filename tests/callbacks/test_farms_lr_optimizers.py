"""Groups that stand in during a step against an optimizer that has them for good."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from layerwise_groups import FIRST, SECOND, Counting, attach, backward, model_and_groups
from models import tiny
from trainers import arguments, same, weights
from transformers.optimization import Adafactor

from hf_farms.blocks import ModelBlockSource
from hf_farms.callbacks.compatibility import check_supported
from hf_farms.callbacks.groups import LayerwiseGroups
from hf_farms.callbacks.parameter_layers import layers_by_parameter
from hf_farms.callbacks.trainer import unwrap_optimizer


def bitsandbytes(name):
    def make(groups):
        library = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
        # Tensors of fewer elements than that have states of 32 bits.
        return getattr(library.optim, name)(groups, lr=1e-3, min_8bit_size=16)

    return make


def schedule_free(groups):
    library = pytest.importorskip("schedulefree", reason="schedulefree is not installed")
    optimizer = library.AdamWScheduleFree(groups, lr=1e-2, warmup_steps=2)
    optimizer.train()
    return optimizer


def adafactor(groups):
    return Adafactor(groups, lr=1e-2, relative_step=False, scale_parameter=False)


OPTIMIZERS = {
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=1e-2, foreach=False),
    "adamw-foreach": lambda groups: torch.optim.AdamW(groups, lr=1e-2, foreach=True),
    "adamw-fused": lambda groups: torch.optim.AdamW(groups, lr=1e-2, fused=True),
    "adamw-tensor-lr": lambda groups: torch.optim.AdamW(groups, lr=torch.tensor(1e-2), foreach=False),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.9),
    "adagrad": lambda groups: torch.optim.Adagrad(groups, lr=1e-2),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, lr=1e-3, momentum=0.5),
    "adafactor": adafactor,
    "counting": lambda groups: Counting(groups, lr=1e-2),
    "schedule-free": schedule_free,
    "adamw-8bit": bitsandbytes("AdamW8bit"),
    "lion-8bit": bitsandbytes("Lion8bit"),
}
if hasattr(torch.optim, "Muon"):
    OPTIMIZERS["muon"] = lambda groups: torch.optim.Muon(groups, lr=1e-2)


def with_groups(make, factors, groups):
    """The optimizer that we want to be equal to; its rates are set by hand."""
    optimizer = make([{"params": found} for found in groups.values()])
    rates = [group["lr"] for group in optimizer.param_groups]

    def set_factors(factors):
        for group, rate, block in zip(optimizer.param_groups, rates, groups, strict=True):
            group["lr"] = rate * (factors[block[0]] if block else 1.0)

    set_factors(factors)
    return optimizer, set_factors


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_equal_to_real_groups_bit_by_bit(name):
    """Also where the factors change on the way."""
    make = OPTIMIZERS[name]
    model, groups = model_and_groups(matrices=name == "muon")
    optimizer = make([parameter for found in groups.values() for parameter in found])
    ours = attach(optimizer, groups)
    ours.set_factors(FIRST)
    twin, other = model_and_groups(matrices=name == "muon")
    expected, set_factors = with_groups(make, FIRST, other)
    for step in range(6):
        if step == 3:
            ours.set_factors(SECOND), set_factors(SECOND)
        backward(model), backward(twin)
        optimizer.step(), expected.step()
    assert same(weights(model), weights(twin))
    assert len(optimizer.param_groups) == 1
    plain, found = model_and_groups(matrices=name == "muon")
    one = make([parameter for group in found.values() for parameter in group])
    for _ in range(6):
        backward(plain)
        one.step()
    assert not same(weights(model), weights(plain))


@pytest.mark.parametrize("name", ["counting", "schedule-free", "adamw-fused"])
def test_what_a_step_counts_in_its_groups_is_resumed(name):
    make = OPTIMIZERS[name]

    def run(steps, *, stop):
        model, groups = model_and_groups(matrices=False)
        optimizer = make([parameter for found in groups.values() for parameter in found])
        ours = attach(optimizer, groups)
        ours.set_factors(FIRST)
        for step in range(steps):
            if step == stop:
                counted, state = ours.counted(), optimizer.state_dict()
                ours.remove()
                optimizer = make([parameter for found in groups.values() for parameter in found])
                optimizer.load_state_dict(state)
                ours = attach(optimizer, groups)
                ours.resume(counted)
                ours.set_factors(FIRST)
            backward(model)
            optimizer.step()
        return model

    assert same(weights(run(4, stop=2)), weights(run(4, stop=None)))


@pytest.mark.parametrize("wrapped", [False, True], ids=["scaler", "accelerate"])
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "unfused"])
def test_steps_that_a_gradient_scaler_skips_do_not_count(fused, wrapped):
    """With a fused optimizer step hooks see them too, without one they do not."""
    Accelerator(cpu=True)
    found = []
    for real in (False, True):
        model, groups = model_and_groups(matrices=False)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        if real:
            optimizer, _ = with_groups(lambda given: torch.optim.AdamW(given, lr=1e-2, fused=fused), FIRST, groups)
        else:
            flat = [parameter for group in groups.values() for parameter in group]
            optimizer = torch.optim.AdamW(flat, lr=1e-2, fused=fused)
            attach(optimizer, groups).set_factors(FIRST)
        outer = AcceleratedOptimizer(optimizer, scaler=scaler) if wrapped else optimizer
        assert unwrap_optimizer(outer) is optimizer
        for step in range(4):
            backward(model, scaler)
            before = weights(model)
            if step == 1:
                model.model.layers[1].mlp.up_proj.weight.grad[0, 0] = torch.inf
            if wrapped:
                outer.step()
            else:
                scaler.step(optimizer)
                scaler.update()
            assert same(before, weights(model)) == (step == 1)
        found.append((weights(model), scaler.get_scale(), vars(optimizer).keys() & {"grad_scale", "found_inf"}))
    assert same(found[0][0], found[1][0])
    assert found[0][1:] == found[1][1:] == (512.0, set())


def test_an_optimizer_that_finds_its_own_rate_is_refused(tmp_path):
    model = tiny("llama")
    optimizer = Adafactor(model.parameters(), relative_step=True, scale_parameter=True)
    message = r"must take its learning rate from its groups .* got Adafactor .* Set relative_step=False"
    with pytest.raises(ValueError, match=message):
        check_supported(arguments(tmp_path), model, optimizer)


def test_every_parameter_of_a_block_has_its_factor():
    model = tiny("llama")
    source = ModelBlockSource(model)
    keys = layers_by_parameter(model, source, outside=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    ours = LayerwiseGroups(optimizer, keys, "lr")
    ours.set_factors({name: 0.5 for names in keys.values() for name in names})
    before = weights(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = {name: (before[name] - parameter).mean().item() for name, parameter in model.named_parameters()}
    for name, distance in moved.items():
        assert distance == pytest.approx(0.5 if name.startswith("model.layers.") else 1.0, rel=1e-4)

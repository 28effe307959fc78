"""Wrappers around a model, and inside it, change neither names nor results."""

import copy
from functools import partial

import pytest
import torch
from families import family_model
from torch import nn

from hf_farms import PruneConfig, analyze, prune
from hf_farms.blocks import ModelBlockSource

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


# How modules are compiled does not matter, and this one takes no time.
compiled = partial(torch.compile, backend="eager")


def adapted(model):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))


def with_compiled_blocks(model):
    for index, block in enumerate(model.model.layers):
        model.model.layers[index] = compiled(block)
    return model


def with_blocks_compiled_in_place(model):
    for block in model.model.layers:
        block.compile(backend="eager")
    return model


def with_offloading_hooks(model):
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    for block in model.model.layers:
        add_hook_to_module(block, AlignDevicesHook("cpu"))
    return model


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "compiled": compiled,
    "both": lambda model: nn.DataParallel(compiled(model)),
    "compiled blocks": with_compiled_blocks,
    "blocks compiled in place": with_blocks_compiled_in_place,
    "offloading": with_offloading_hooks,
    "PEFT": adapted,
    "compiled PEFT": lambda model: compiled(adapted(model)),
}


def names_of(report):
    return [(block.name, [layer.name for layer in block.layers]) for block in report.blocks]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_names_are_those_of_the_model(wrapper):
    model = family_model("llama")
    plain = analyze(model)
    wrapped = analyze(WRAPPERS[wrapper](model))
    assert names_of(wrapped) == names_of(plain)
    assert [block.alpha for block in wrapped.blocks] == [block.alpha for block in plain.blocks]
    assert wrapped.model_type == "llama"


@pytest.mark.parametrize("wrapper", [name for name in WRAPPERS if "PEFT" not in name])
def test_the_model_inside_is_pruned(wrapper):
    plain, inside = family_model("llama"), family_model("llama")
    batches = [torch.randint(0, 100, (2, 12), generator=torch.Generator().manual_seed(1))]
    wrapped = WRAPPERS[wrapper](inside)
    forwards = [vars(block).get("forward") for block in inside.model.layers]
    config = PruneConfig(allocation="uniform")
    expected = prune(plain, config, calibration=copy.deepcopy(batches)).report
    assert prune(wrapped, config, calibration=batches).report == expected
    assert all(torch.equal(a, b) for a, b in zip(inside.parameters(), plain.parameters(), strict=True))
    assert [vars(block).get("forward") for block in inside.model.layers] == forwards


def test_a_source_has_the_model_inside():
    model = family_model("llama")
    assert ModelBlockSource(nn.DataParallel(model)).model is model

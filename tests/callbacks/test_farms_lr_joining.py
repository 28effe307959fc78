"""Parameters that join or leave the optimizer while the training runs."""

import pytest
import torch
import transformers
from layerwise_groups import BLOCKS, FIRST, attach, backward, model_and_groups
from models import tiny
from trainers import FAST, Tokens, arguments, same, signal, weights
from transformers import Trainer

from hf_farms import FarmsLRCallback, FarmsLRConfig
from hf_farms.allocation.lr import allocate_lr
from hf_farms.callbacks.trainer import unwrap_optimizer
from hf_farms.spectra.analysis import analyze

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*", "ignore:.*lr_scheduler.step.*before.*:UserWarning")

MAKE = {
    "adamw-fused": lambda groups: torch.optim.AdamW(groups, lr=1e-2, fused=True),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.9),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, lr=1e-3, foreach=True),
}


def start(make, *, real):
    """Without the first block: our optimizer has one group, the one that it is compared with one for each block."""
    model, groups = model_and_groups(matrices=False)
    late = groups[BLOCKS[0]]
    optimizer = make([parameter for block, found in groups.items() if block != BLOCKS[0] for parameter in found])
    rate = optimizer.param_groups[0]["lr"]
    if real:
        given = [(block, found) for block, found in groups.items() if block != BLOCKS[0]]
        optimizer = make([{"params": found, "lr": rate * (FIRST[b[0]] if b else 1.0)} for b, found in given])
    else:
        attach(optimizer, groups).set_factors(FIRST)
    return model, optimizer, late, rate


def steps(model, optimizer, count):
    for _ in range(count):
        backward(model)
        optimizer.step()


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("how", ["extended", "replaced", "new group"])
def test_what_joins_is_trained_with_its_factor_bit_by_bit(name, how):
    model, optimizer, late, rate = start(MAKE[name], real=False)
    twin, expected, others, _ = start(MAKE[name], real=True)
    steps(model, optimizer, 2), steps(twin, expected, 2)
    before = weights(model)
    group = optimizer.param_groups[0]
    other_rate = 3 * rate if how == "new group" else rate
    if how == "extended":
        group["params"].extend(late)
    elif how == "replaced":
        group["params"] = [*late, *group["params"]]
    else:
        optimizer.add_param_group({"params": late, "lr": other_rate})
    expected.add_param_group({"params": others, "lr": other_rate * FIRST["model.layers.0"]})
    steps(model, optimizer, 3), steps(twin, expected, 3)
    assert same(weights(model), weights(twin))
    assert not torch.equal(before["model.layers.0.mlp.up_proj.weight"], model.model.layers[0].mlp.up_proj.weight)
    assert len(optimizer.param_groups) == (2 if how == "new group" else 1)


def test_what_has_left_a_group_is_not_trained():
    model, groups = model_and_groups(matrices=False)
    optimizer = torch.optim.AdamW([parameter for found in groups.values() for parameter in found], lr=1e-2)
    attach(optimizer, groups).set_factors(FIRST)
    steps(model, optimizer, 2)
    gone = {id(parameter) for parameter in groups[BLOCKS[0]]}
    group = optimizer.param_groups[0]
    group["params"][:] = [parameter for parameter in group["params"] if id(parameter) not in gone]
    before = weights(model)
    steps(model, optimizer, 2)
    for key, value in weights(model).items():
        assert torch.equal(value, before[key]) == key.startswith("model.layers.0."), key


def test_a_group_that_is_taken_away_is_not_trained():
    model, optimizer, late, _ = start(MAKE["sgd"], real=False)
    optimizer.add_param_group({"params": late})
    steps(model, optimizer, 1)
    first = optimizer.param_groups.pop(0)
    before = weights(model)
    steps(model, optimizer, 1)
    assert torch.equal(first["params"][0], before["model.layers.1.self_attn.q_proj.weight"])
    assert not torch.equal(before["model.layers.0.mlp.up_proj.weight"], model.model.layers[0].mlp.up_proj.weight)


def test_what_steps_have_counted_stays_when_others_join():
    """A state that is loaded on the way replaces the groups and keeps their parameters."""
    from layerwise_groups import Counting

    model, optimizer, late, _ = start(lambda groups: Counting(groups, lr=1e-2), real=False)
    steps(model, optimizer, 2)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.param_groups[0]["params"].extend(late)
    seen = []
    optimizer.register_step_pre_hook(lambda _, args, __: seen.append(args[0].param_groups))
    steps(model, optimizer, 1)
    sums = [round(group["sum"] / 1e-2, 4) for group in seen[0]]
    # Of the second block, the third and the rest three steps each; the first goes on from what its group had.
    assert sums[:3] == pytest.approx([3 * 1.5, 3 * 1.1, 3.0])
    assert len(sums) == 4


class Unfreeze(transformers.TrainerCallback):
    """Trains the first block from a step on: the optimizer is given it, or has had it all the time."""

    def __init__(self, model, step, *, given):
        self.parameters, self.step, self.given = list(model.model.layers[0].parameters()), step, given
        for parameter in self.parameters:
            parameter.requires_grad_(False)

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        if state.global_step == self.step:
            for parameter in self.parameters:
                parameter.requires_grad_(True)
            if self.given:
                group = unwrap_optimizer(optimizer).param_groups[self.given - 1]
                group["params"].extend(self.parameters)


def unfrozen(folder, *, factors=None, config=None, given=True, **options):
    """A training that unfreezes the first block at step 3; with `factors` in groups that have them for good."""
    model = signal(tiny("llama"))
    first = list(model.model.layers[0].parameters())
    rest = [parameter for parameter in model.parameters() if all(parameter is not p for p in first)]
    unfreeze = Unfreeze(model, 3, given=given)
    if factors is None:
        groups = [{"params": rest if given else [*rest, *first]}]
    else:
        by_block = {factor: list(block.parameters()) for factor, block in zip(factors, model.model.layers, strict=True)}
        inside = {id(parameter) for block in model.model.layers for parameter in block.parameters()}
        outside = [parameter for parameter in model.parameters() if id(parameter) not in inside]
        by_block[factors[0]] = []
        groups = [{"params": found, "lr": 1e-2 * factor} for factor, found in by_block.items()]
        groups.append({"params": outside})
    optimizer = torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.0)
    callbacks = [unfreeze] if config is None else [FarmsLRCallback(config), unfreeze]
    return Trainer(
        model=model,
        args=arguments(folder, **options),
        train_dataset=Tokens(),
        callbacks=callbacks,
        optimizers=(optimizer, None),
    )


@pytest.mark.parametrize("given", [True, False], ids=["appended", "frozen in the optimizer"])
def test_gradual_unfreezing_is_that_of_real_groups_bit_by_bit(given, tmp_path):
    config = FarmsLRConfig(start=0, frozen=True)
    run = unfrozen(tmp_path / "a", config=config, given=given)
    found = allocate_lr(analyze(run.model), config=config)
    factors = [found[f"model.layers.{i}.self_attn.q_proj"] for i in range(3)]
    assert len({round(factor, 2) for factor in factors} - {1.0}) == 3
    before = weights(run.model)
    run.train()
    twin = unfrozen(tmp_path / "b", factors=factors)
    twin.train()
    assert same(weights(run.model), weights(twin.model))
    assert not torch.equal(before["model.layers.0.mlp.up_proj.weight"], run.model.model.layers[0].mlp.up_proj.weight)


def test_a_resume_after_the_unfreezing_is_exact(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 5, "lr_scheduler_type": "cosine"}
    whole = unfrozen(tmp_path / "a", config=FAST, **options)
    whole.train()
    # Whoever resumes builds the optimizer as it was when the checkpoint was saved.
    again = unfrozen(tmp_path / "a", config=FAST, given=False, **options)
    again.callback_handler.callbacks[-1].step = None
    for parameter in again.model.model.layers[0].parameters():
        parameter.requires_grad_(True)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-5"))
    assert same(weights(whole.model), weights(again.model))


def test_adapters_that_are_added_on_the_way_are_trained(tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model = signal(tiny("llama"))

    class Add(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
            if state.global_step == 3:
                peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["q_proj"]), model)
                self.found = [p for name, p in model.named_parameters() if "lora_" in name]
                unwrap_optimizer(optimizer).add_param_group({"params": self.found})

    callback, add = FarmsLRCallback(FarmsLRConfig(start=0, interval=2)), Add()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    constant = torch.optim.lr_scheduler.MultiplicativeLR(optimizer, lambda step: 1.0)
    constant.step = lambda *args: None
    run = Trainer(
        model=model,
        args=arguments(tmp_path),
        train_dataset=Tokens(),
        callbacks=[callback, add],
        optimizers=(optimizer, constant),
    )
    run.train()
    moved = [float(parameter.detach().abs().max()) for parameter in add.found]
    assert min(moved) > 0
    assert callback.memory["step"] == 6
    assert "model.layers.0.self_attn.q_proj" in callback.memory["factors"]

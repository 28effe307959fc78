"""The weight follows the slice: whatever optimizer makes the step, in whatever loop."""

import copy
import gc
import io
import weakref

import pytest
import torch
from models import NEEDS_MUON, tiny
from s2ft_models import EARLY, INDEXED, LAYOUTS, follows, inside, layers, plain, trainer
from trainers import Tokens, arguments, same, weights
from transformers import Trainer, TrainerCallback

from hf_farms import S2FTCallback, apply_s2ft
from hf_farms.callbacks.trainer import unwrap_optimizer
from hf_farms.s2ft import layers as layers_module
from hf_farms.s2ft.surgery import selection_of

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*")

OPTIMIZERS = ["sgd", "adamw_torch", "adamw_torch_fused", "adafactor", "adagrad", "rmsprop"]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def moved(before, after, selection):
    """Every trained entry of every weight, and no other, is another one now."""
    trained = inside(before, selection)
    changed = [(after[name] != before[name])[trained[name]] for name in after]
    return torch.cat(changed).float().mean() > 0.9 and all(
        torch.equal(after[name][~trained[name]], before[name][~trained[name]]) for name in after
    )


@DTYPES
@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_after_one_step_the_weight_is_the_slice(optim, dtype, tmp_path):
    model = tiny("llama", dtype=dtype)
    before = plain(model)
    lr = 10.0 if optim == "sgd" else 1e-2
    run = trainer(tmp_path, S2FTCallback(INDEXED), model=model, optim=optim, max_steps=1, learning_rate=lr)
    slices = [layer.selected.detach().clone() for layer in layers(model)]
    run.train()
    assert not any(torch.equal(layer.selected, old) for layer, old in zip(layers(model), slices, strict=True))
    assert follows(model)
    assert moved(before, plain(model), selection_of(model))


@DTYPES
@pytest.mark.parametrize("optim", ["adamw_bnb_8bit", "lion_8bit", "rmsprop_bnb_8bit"])
def test_after_one_step_in_8_bits(optim, dtype, tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    # Large enough: it keeps the state of less than 4096 numbers in float32.
    model = tiny("llama", dtype=dtype, hidden_size=64, intermediate_size=512)
    before = plain(model)
    run = trainer(tmp_path, S2FTCallback(INDEXED), model=model, optim=optim, max_steps=1)
    run.train()
    states = [unwrap_optimizer(run.optimizer).state[layer.selected]["state1"].dtype for layer in layers(model)]
    assert torch.uint8 in states
    assert follows(model)
    assert moved(before, plain(model), selection_of(model))


@NEEDS_MUON
@DTYPES
def test_after_one_step_of_muon(dtype, tmp_path):
    """Which takes matrices only: a slice is one."""
    model = tiny("llama", dtype=dtype)
    before = plain(model)
    run = Trainer(
        model=model,
        args=arguments(tmp_path, max_steps=1),
        train_dataset=Tokens(),
        callbacks=[S2FTCallback(INDEXED)],
        optimizer_cls_and_kwargs=(torch.optim.Muon, {"lr": 1e-2}),
    )
    run.train()
    assert isinstance(unwrap_optimizer(run.optimizer), torch.optim.Muon)
    assert follows(model)
    assert moved(before, plain(model), selection_of(model))


class Follows(TrainerCallback):
    def __init__(self):
        self.steps = []

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append(follows(model))


@EARLY
def test_after_every_step(early, tmp_path):
    watch = Follows()
    run = trainer(tmp_path, S2FTCallback(INDEXED), early=early, model=tiny("llama", dtype=torch.bfloat16))
    run.add_callback(watch)
    run.train()
    assert watch.steps == [True] * 4


def batch():
    ids = torch.stack([Tokens()[i]["input_ids"] for i in range(4)])
    return {"input_ids": ids, "labels": ids}


def optimizer_of(model, kind=torch.optim.SGD, **options):
    return kind([p for p in model.parameters() if p.requires_grad], **{"lr": 0.1, **options})


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*:UserWarning")
@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_gradient_scaler_skips_changes_nothing(fused):
    model = tiny("llama").train()
    apply_s2ft(model, INDEXED)
    optimizer = optimizer_of(model, torch.optim.AdamW, fused=fused, lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    for overflow in (False, True, False):
        before = plain(model)
        with torch.autocast("cpu", dtype=torch.float16):
            loss = model(**batch()).loss
        scaler.scale(loss).backward()
        assert all(layer.selected.grad.dtype == torch.float32 for layer in layers(model))
        if overflow:
            layers(model)[0].selected.grad[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert same(before, plain(model)) == overflow
        assert follows(model)
    assert scaler.get_scale() == 2.0**7


@LAYOUTS
def test_half_precision_gradients_through_the_scaler_are_the_full_ones(config):
    """Unscaled, they are those of float32 up to the rounding of float16."""
    found = []
    for half in (False, True):
        model = tiny("llama").train()
        apply_s2ft(model, config)
        optimizer = optimizer_of(model)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, enabled=half)
        with torch.autocast("cpu", dtype=torch.float16, enabled=half):
            loss = model(**batch()).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        found.append(torch.cat([layer.selected.grad.flatten() for layer in layers(model)]))
    assert (found[0] - found[1]).norm() < 5e-3 * found[0].norm()


@LAYOUTS
def test_a_copy_trains_by_itself(config):
    model = tiny("llama").train()
    apply_s2ft(model, config)
    twin = copy.deepcopy(model)
    before = plain(model)
    optimizer = optimizer_of(twin)
    twin(**batch()).loss.backward()
    optimizer.step()
    assert same(before, plain(model))
    assert moved(before, plain(twin), selection_of(twin))
    ours = optimizer_of(model)
    model(**batch()).loss.backward()
    ours.step()
    assert same(plain(model), plain(twin))


@LAYOUTS
def test_state_dicts_travel_as_files(config, tmp_path):
    model = tiny("llama").train()
    apply_s2ft(model, config)
    optimizer = optimizer_of(model)
    model(**batch()).loss.backward()
    optimizer.step()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    stored = torch.load(file, weights_only=True)
    assert stored.keys() == tiny("llama").state_dict().keys()
    fresh, applied = tiny("llama", seed=1), tiny("llama", seed=2)
    apply_s2ft(applied, config)
    for other in (fresh, applied):
        assert str(other.load_state_dict(stored)) == "<All keys matched successfully>"
        assert same(plain(other), stored)
    assert follows(applied)


def test_an_optimizer_of_something_else_leaves_the_weights_alone():
    model, other = tiny("llama"), tiny("llama", seed=1)
    apply_s2ft(model, INDEXED)
    with torch.no_grad():
        layers(model)[0].selected += 1
    before = weights(model)
    other(**batch()).loss.backward()
    optimizer_of(other).step()
    assert same(before, weights(model))


def test_a_model_that_is_gone_leaves_nothing_behind(tmp_path):
    gc.collect()
    count = len(layers_module._LAYERS)
    run = trainer(tmp_path, S2FTCallback(INDEXED))
    run.train()
    model = weakref.ref(run.model)
    assert len(layers_module._LAYERS) == count + 6
    del run
    gc.collect()
    assert model() is None
    assert len(layers_module._LAYERS) == count

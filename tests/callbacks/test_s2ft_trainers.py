"""S2FTCallback with what users of a Trainer do beside it."""

import pytest
import torch
import transformers
from families import family_model
from launch import run_script
from models import CHECKPOINTING, NEEDS_COMPILE, tiny
from s2ft_models import EARLY, INDEXED, LAYOUTS, TWO_PRODUCTS, follows, inside, layers, plain, trainer
from trainers import Images, InTheStep, Pairs, same, signal

from hf_farms import FarmsLRCallback, FarmsLRConfig, S2FTCallback, S2FTConfig, apply_s2ft
from hf_farms.callbacks.trainer import unwrap_optimizer
from hf_farms.s2ft.surgery import selection_of, selective_layers

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*")


def close(a, b, *, limit):
    """Relative difference of all that has changed, in the Frobenius norm."""
    start = plain(tiny("llama"))
    wrong = sum(((a[name] - b[name]).float() ** 2).sum() for name in a) ** 0.5
    return wrong < limit * sum(((a[name] - start[name]).float() ** 2).sum() for name in a) ** 0.5


def trained(folder, config=INDEXED, **options):
    run = trainer(folder, S2FTCallback(config), **options)
    run.train()
    assert follows(run.model) or not config.write_back
    return plain(run.model)


def test_accumulation_is_one_big_batch(tmp_path):
    """SGD, whose step is as exact as the gradient."""
    options = {"optim": "sgd", "learning_rate": 1.0}
    small = trained(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4, **options)
    assert close(small, trained(tmp_path, per_device_train_batch_size=8, **options), limit=1e-5)


def test_clipping_is_by_the_norm_of_the_slices(tmp_path):
    norms = []
    options = {"optim": "sgd", "learning_rate": 1.0, "max_steps": 1, "logging_steps": 1, "weight_decay": 0.0}
    start = plain(tiny("llama"))
    for limit in (1e9, 0.1):
        run = trainer(tmp_path, S2FTCallback(INDEXED), max_grad_norm=limit, **options)
        run.train()
        moved = sum(((tensor - start[name]) ** 2).sum() for name, tensor in plain(run.model).items()) ** 0.5
        norms.append((run.state.log_history[1]["grad_norm"], moved.item()))
    (norm, whole), (same_norm, clipped) = norms
    assert norm == pytest.approx(same_norm) == pytest.approx(whole, rel=1e-4)
    assert norm > 0.2
    assert clipped == pytest.approx(0.1, rel=1e-4)


@LAYOUTS
def test_mixed_precision(config, tmp_path):
    assert close(trained(tmp_path, config, bf16=True), trained(tmp_path, config), limit=0.2)


@pytest.mark.filterwarnings("ignore:.*use_reentrant.*", "ignore:.is_gradient_checkpointing. is deprecated")
@pytest.mark.parametrize(
    ("config", "early", "reentrant"),
    [(INDEXED, True, False), (INDEXED, True, True), (INDEXED, False, True), (TWO_PRODUCTS, True, True)],
    ids=["", "reentrant", "reentrant, late", "reentrant, two products"],
)
def test_activation_checkpointing_changes_nothing(config, early, reentrant, tmp_path):
    options = {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"use_reentrant": reentrant}}
    assert same(trained(tmp_path, config, early=early, **options), trained(tmp_path, config, early=early))


class Patches(Images):
    def __getitem__(self, index):
        item = super().__getitem__(index)
        return {**item, "pixel_values": item["pixel_values"][:, :16, :16]}


@pytest.mark.filterwarnings("ignore:.*use_reentrant.*")
def test_reentrant_checkpointing_of_images(tmp_path):
    """Nothing that goes into the first block requires a gradient, and transformers sees to that for tokens only."""
    options = {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"use_reentrant": True}}
    found = []
    for given in (options, {}):
        model = family_model("vit")
        found.append(trained(tmp_path, model=model, data=Patches(), **given))
    assert same(*found)
    assert not same(found[0], plain(family_model("vit")))


@NEEDS_COMPILE
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled(backend, tmp_path):
    torch._dynamo.reset()
    compiled = trained(tmp_path, torch_compile=True, torch_compile_backend=backend)
    assert close(compiled, trained(tmp_path), limit=1e-3)


@NEEDS_COMPILE
@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*should not be instantiated:DeprecationWarning")
def test_compiled_without_a_break_of_the_graph():
    model = tiny("llama").train()
    ids = torch.arange(12)[None]
    apply_s2ft(model, S2FTConfig(budget=0.1, roles=("v", "o", "up", "down")))
    whole = torch.compile(model, backend="aot_eager", fullgraph=True)
    whole(input_ids=ids, labels=ids).loss.backward()
    compiled = [layer.selected.grad.clone() for layer in layers(model)]
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    for layer, gradient in zip(layers(model), compiled, strict=True):
        torch.testing.assert_close(layer.selected.grad, gradient)


@EARLY
def test_auto_find_batch_size_starts_again_cleanly(early, tmp_path):
    run = trainer(
        tmp_path, S2FTCallback(INDEXED), early=early, auto_find_batch_size=True, per_device_train_batch_size=8
    )
    before = plain(run.model)
    step, failed = run.training_step, []

    def out_of_memory_once(*args, **kwargs):
        if run.state.global_step == 2 and not failed:
            failed.append(True)
            raise RuntimeError("CUDA out of memory.")
        return step(*args, **kwargs)

    run.training_step = out_of_memory_once
    run.train()
    assert failed
    assert run.state.global_step == 4
    assert follows(run.model)
    outside = inside(before, selection_of(run.model))
    after = plain(run.model)
    assert all(torch.equal(after[name][~outside[name]], before[name][~outside[name]]) for name in after)
    held = {id(p) for group in unwrap_optimizer(run.optimizer).param_groups for p in group["params"]}
    assert held == {id(layer.selected) for layer in layers(run.model)}


@EARLY
@pytest.mark.parametrize("first", ["s2ft", "farms"])
def test_slices_learn_by_the_factors_of_their_layers(first, early, tmp_path):
    farms = FarmsLRCallback(FarmsLRConfig(start=0, frozen=True))
    s2ft, seen = S2FTCallback(INDEXED), []
    model = signal(tiny("llama"))
    before = plain(model)
    run = trainer(
        tmp_path, model=model, lr_scheduler_type="constant", max_steps=1, make=both(s2ft, farms, first, early)
    )

    def look(optimizer, args, kwargs):
        by_slice = {id(p): group["lr"] for group in args[0].param_groups for p in group["params"]}
        seen.extend((name, by_slice[id(layer.selected)]) for name, layer in selective_layers(model))

    run.add_callback(InTheStep(look))
    run.train()
    factors = farms.memory["factors"]
    assert max(factors.values()) - min(factors.values()) > 0.3
    assert len(seen) == 6
    assert all(lr == pytest.approx(1e-2 * factors[name]) for name, lr in seen)
    assert follows(model)
    assert not same(before, plain(model))


def both(s2ft, farms, first, early):
    """A Trainer with both callbacks in this order."""

    def make(callbacks, **given):
        order = [s2ft, farms] if first == "s2ft" else [farms, s2ft]
        run = transformers.Trainer(callbacks=order if early else [], **given)
        for callback in [] if early else order:
            run.add_callback(callback)
        return run

    return make


@EARLY
@pytest.mark.parametrize("first", ["s2ft", "farms"])
def test_both_callbacks_resume_exactly(first, early, tmp_path):
    def run():
        farms = FarmsLRCallback(FarmsLRConfig(start=0, interval=1))
        make = both(S2FTCallback(INDEXED), farms, first, early)
        options = {"save_strategy": "steps", "save_steps": 2}
        return trainer(tmp_path, model=signal(tiny("llama")), make=make, **options)

    whole, again = run(), run()
    whole.train()
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert same(plain(whole.model), plain(again.model))


@EARLY
def test_seq2seq(early, tmp_path):
    model = family_model("t5")
    model.config.decoder_start_token_id = 0
    before = plain(model)

    def make(args, **given):
        options = {name: value for name, value in args.to_dict().items() if value is not None}
        args = transformers.Seq2SeqTrainingArguments(**options | {"predict_with_generate": True})
        return transformers.Seq2SeqTrainer(args=args, **given)

    run = trainer(tmp_path, S2FTCallback(INDEXED), early=early, model=model, make=make, data=Pairs())
    run.train()
    assert follows(model)
    changed = {name for name, tensor in plain(model).items() if not torch.equal(tensor, before[name])}
    assert changed == {f"{name}.weight" for name in selection_of(model).channels}
    assert {name.rpartition(".")[2] for name in selection_of(model).channels} == {"o", "wo"}


SCRIPT = """
import sys
import torch
from s2ft_models import INDEXED, follows, plain, trainer
from hf_farms import S2FTCallback
run = trainer(sys.argv[1], S2FTCallback(INDEXED), per_device_train_batch_size=2)
run.train()
assert follows(run.model)
late = trainer(sys.argv[1], S2FTCallback(INDEXED), early=False)
try:
    late.train()
except ValueError as error:
    refused = str(error)
broadcast = [list(buffer.shape) for buffer in run.model_wrapped.modules_buffers]
torch.save((plain(run.model), refused, broadcast), f"{sys.argv[1]}/{run.args.process_index}.pt")
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


def test_two_processes_stay_identical_and_cannot_add_it_late(tmp_path):
    done = run_script(SCRIPT, tmp_path)
    assert (
        done.stdout.count("trainable params: ")
        == done.stdout.count("S2FT: the adapter (trained slices, and those of the base) was saved in ")
        == 1
    )
    (first, refused, broadcast), (second, other, _) = (
        torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)
    )
    assert same(first, second)
    # DDP sends those of the model in every forward pass, and nothing of S2FT.
    assert broadcast == [list(buffer.shape) for buffer in tiny("llama").buffers()]
    # As one process with both shares of every batch.
    assert close(first, trained(tmp_path / "one", per_device_train_batch_size=4), limit=1e-2)
    assert refused == other
    assert refused == (
        "S2FT must be applied before the model is wrapped for distributed training. Pass it as "
        "Trainer(callbacks=[cb]), or call apply_s2ft(trainer.model, ...) before trainer.train()."
    )

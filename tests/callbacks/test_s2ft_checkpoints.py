"""S2FTCallback: checkpoints, resuming, the best model."""

from dataclasses import replace

import pytest
import torch
from models import tiny
from s2ft_models import EARLY, INDEXED, LAYOUTS, PERMUTED, TWO_PRODUCTS, follows, layers, plain, trainer
from trainers import same
from transformers import AutoModelForCausalLM, TrainerCallback

from hf_farms import S2FTCallback, S2FTConfig
from hf_farms.callbacks.trainer import unwrap_optimizer
from hf_farms.s2ft.saving import load_selection
from hf_farms.s2ft.surgery import selection_of

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*")

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
SAVING = {"save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "cosine", "weight_decay": 0.1}


def slices(model):
    return {str(i): layer.selected.detach().clone() for i, layer in enumerate(layers(model))}


def adagrad_takes_other_parameters():
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adagrad([parameter])
    optimizer.state.clear()
    parameter.grad = torch.ones(1)
    try:
        optimizer.step()
    except KeyError:
        return False
    return True


NEEDS_OTHER = pytest.mark.skipif(
    not adagrad_takes_other_parameters(), reason="Adagrad of this torch knows the parameters that it was made with"
)


@LAYOUTS
@DTYPES
@EARLY
def test_resuming_is_exact(config, dtype, early, tmp_path):
    """Weights, the float32 slices below half precision weights, and what the optimizer keeps."""
    whole = trainer(tmp_path, S2FTCallback(config), early=early, model=tiny("llama", dtype=dtype), **SAVING)
    whole.train()
    again = trainer(tmp_path, S2FTCallback(config), early=early, model=tiny("llama", dtype=dtype), **SAVING)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert same(plain(whole.model), plain(again.model))
    assert same(slices(whole.model), slices(again.model))
    states = [
        [unwrap_optimizer(run.optimizer).state[layer.selected] for layer in layers(run.model)] for run in (whole, again)
    ]
    for one, other in zip(*states, strict=True):
        assert one.keys() == other.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert same(one, other)
    kept = torch.load(tmp_path / "checkpoint-4" / "optimizer.pt", weights_only=True)["param_groups"][0]["s2ft"]
    assert len(kept["slices"]) == 6
    assert all(tensor.dtype == torch.float32 for tensor in kept["slices"].values())


@pytest.mark.skipif(adagrad_takes_other_parameters(), reason="Adagrad of this torch takes other parameters")
def test_an_adagrad_that_takes_no_other_parameters_is_refused(tmp_path):
    run = trainer(tmp_path, S2FTCallback(INDEXED), early=False, **SAVING, optim="adagrad")
    with pytest.raises(ValueError, match=r"^S2FTCallback must be an argument of the Trainer for optim='adagrad'"):
        run.train()


@pytest.mark.parametrize("optim", ["sgd", "adafactor", pytest.param("adagrad", marks=NEEDS_OTHER), "rmsprop"])
def test_resuming_is_exact_with_other_optimizers(optim, tmp_path):
    """Added late: then their states are kept by the callback and not by the optimizer."""
    options = {**SAVING, "optim": optim, "learning_rate": 1e-3}
    whole = trainer(tmp_path, S2FTCallback(INDEXED), early=False, **options)
    whole.train()
    again = trainer(tmp_path, S2FTCallback(INDEXED), early=False, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert same(plain(whole.model), plain(again.model))


def test_a_resumed_run_is_resumed(tmp_path):
    options = {**SAVING, "max_steps": 6}
    whole = trainer(tmp_path, S2FTCallback(INDEXED), early=False, **options)
    whole.train()
    for step in (2, 4):
        again = trainer(tmp_path, S2FTCallback(INDEXED), early=False, **options)
        again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert same(plain(whole.model), plain(again.model))


@EARLY
def test_the_same_trainer_resumes(early, tmp_path):
    run = trainer(tmp_path, S2FTCallback(INDEXED), early=early, **SAVING)
    run.train()
    once = plain(run.model)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert same(once, plain(run.model))


def test_added_late_the_file_of_the_optimizer_keeps_its_layout(tmp_path):
    """So that the optimizer of a resumed run, which is built over the whole model, can load it."""
    trainer(tmp_path / "a", S2FTCallback(INDEXED), early=False, **SAVING).train()
    trainer(tmp_path / "b", **SAVING).train()
    groups = [torch.load(tmp_path / x / "checkpoint-4" / "optimizer.pt")["param_groups"] for x in "ab"]
    assert groups[0][0].pop("s2ft")["state"].keys() == load_selection(tmp_path / "a" / "checkpoint-4").channels.keys()
    assert groups[0] == groups[1]
    assert [len(group["params"]) for group in groups[0]] == [23, 7]


def test_a_checkpoint_without_it_is_resumed_with_it_added(tmp_path):
    trainer(tmp_path, **SAVING).train()
    run = trainer(tmp_path, S2FTCallback(INDEXED), early=False, **{**SAVING, "max_steps": 6})
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert run.state.global_step == 6
    assert follows(run.model)
    stored = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-6").state_dict()
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-4").state_dict()
    assert torch.equal(stored["lm_head.weight"], base["lm_head.weight"])
    assert not torch.equal(stored["model.layers.0.mlp.down_proj.weight"], base["model.layers.0.mlp.down_proj.weight"])


@EARLY
def test_another_selection_is_refused_and_the_repair_works(early, tmp_path):
    whole = trainer(tmp_path, S2FTCallback(INDEXED), early=early, **SAVING)
    whole.train()
    checkpoint = tmp_path / "checkpoint-2"
    other = S2FTConfig(budget=0.1, seed=1)
    why = r"selection must be that of the checkpoint, got another one: .* Pass S2FTCallback\(selection=load_selection\("
    # The same sizes, so that nothing else notices.
    with pytest.raises(ValueError, match=why):
        trainer(tmp_path, S2FTCallback(other), early=early, **SAVING).train(resume_from_checkpoint=str(checkpoint))
    repaired = S2FTCallback(selection=load_selection(checkpoint))
    again = trainer(tmp_path, repaired, early=early, **SAVING)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert same(plain(whole.model), plain(again.model))


@pytest.mark.parametrize(
    ("config", "dtype", "options"),
    [
        (INDEXED, torch.float32, {"tie_word_embeddings": True}),
        (PERMUTED, torch.float32, {"tie_word_embeddings": True}),
        (INDEXED, torch.bfloat16, {}),
        (PERMUTED, torch.bfloat16, {}),
        (TWO_PRODUCTS, torch.float32, {}),
        (replace(TWO_PRODUCTS, layout="permuted"), torch.float32, {}),
    ],
    ids=["indexed, tied", "permuted, tied", "indexed, bfloat16", "permuted, bfloat16", "two", "two, permuted"],
)
def test_checkpoints_are_plain_models_equal_to_the_one_in_memory(config, dtype, options, ids, tmp_path):
    tiny("llama", **options).save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=dtype)
    run = trainer(tmp_path, S2FTCallback(config), model=model, save_strategy="steps", save_steps=2)
    run.train()
    run.save_model(str(tmp_path / "end"))
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    for folder in ("checkpoint-4", "end", "shards"):
        stored, info = AutoModelForCausalLM.from_pretrained(tmp_path / folder, dtype="auto", output_loading_info=True)
        assert not any(info.values())
        assert same(plain(model), plain(stored))
        assert same(stored.state_dict(), plain(model))
        with torch.no_grad():
            ours, theirs = model.eval()(ids[0]).logits, stored(ids[0]).logits
        # Heads and channels in another order are added up in another order.
        limit = 0 if config is INDEXED else 1e-6 if dtype == torch.float32 else 1e-2
        assert (ours - theirs).norm() <= limit * theirs.norm()
    assert (stored.lm_head.weight is stored.model.embed_tokens.weight) == bool(options)


def test_the_selection_lies_beside_every_checkpoint(tmp_path):
    run = trainer(tmp_path, S2FTCallback(PERMUTED), save_strategy="steps", save_steps=2)
    run.train()
    for step in (2, 4):
        folder = tmp_path / f"checkpoint-{step}"
        assert {"s2ft_config.json", "s2ft_adapter.safetensors"} <= {path.name for path in folder.iterdir()}
        found = load_selection(folder)
        assert found == selection_of(run.model)
        assert found.config == PERMUTED


@LAYOUTS
def test_the_best_model_is_loaded_at_the_end(config, tmp_path):
    """Not the last one, where the largest loss is the best."""
    options = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    options |= {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    run = trainer(tmp_path, S2FTCallback(config), **options)
    run.train()
    assert run.state.best_global_step == 2
    best, last = (AutoModelForCausalLM.from_pretrained(tmp_path / f"checkpoint-{step}") for step in (2, 4))
    assert same(best.state_dict(), plain(run.model))
    assert not same(last.state_dict(), plain(run.model))
    assert run.evaluate()["eval_loss"] == pytest.approx(run.state.best_metric, rel=1e-6)


@LAYOUTS
def test_evaluation_in_the_middle_disturbs_nothing(config, tmp_path):
    quiet = trainer(tmp_path, S2FTCallback(config))
    quiet.train()
    looking = trainer(tmp_path, S2FTCallback(config), eval_strategy="steps", eval_steps=1)
    looking.train()
    assert same(plain(quiet.model), plain(looking.model))
    losses = [entry["eval_loss"] for entry in looking.state.log_history if "eval_loss" in entry]
    # Each evaluation sees the weights of its step.
    assert len(set(losses)) == 4


class AtStep(TrainerCallback):
    """Keeps the weights that there were at a step."""

    def __init__(self, step):
        self.step, self.weights = step, None

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            self.weights = plain(model)


@EARLY
def test_a_checkpoint_holds_the_weights_of_its_step(early, tmp_path):
    watch = AtStep(2)
    run = trainer(tmp_path, S2FTCallback(PERMUTED), early=early, save_strategy="steps", save_steps=2)
    run.add_callback(watch)
    run.train()
    assert same(watch.weights, AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-2").state_dict())

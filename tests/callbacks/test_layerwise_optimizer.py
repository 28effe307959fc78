"""layerwise_optimizer without DeepSpeed, in a real Trainer."""

import pytest
import torch
from models import tiny
from trainers import FAST, Tokens, arguments, same, signal, trainer, weights
from transformers import Trainer

from hf_farms import FarmsLRCallback, LayerwiseLRCallback, layerwise_optimizer
from hf_farms.callbacks.groups import TAG
from hf_farms.callbacks.trainer import unwrap_optimizer
from hf_farms.errors import HfFarmsWarning, NoEffectWarning


def with_optimizer(folder, callback, *, callbacks=None, **options):
    return Trainer(
        model=signal(tiny("llama")),
        args=arguments(folder, **options),
        train_dataset=Tokens(),
        callbacks=[callback] if callbacks is None else callbacks,
        optimizer_cls_and_kwargs=layerwise_optimizer(callback),
    )


def test_without_deepspeed_it_changes_nothing_and_says_so(tmp_path):
    run = with_optimizer(tmp_path, FarmsLRCallback(FAST))
    with pytest.warns(NoEffectWarning, match=r"layerwise_optimizer has no effect: only DeepSpeed needs groups"):
        run.train()
    plain = trainer(tmp_path / "plain", FarmsLRCallback(FAST))
    plain.train()
    assert same(weights(run.model), weights(plain.model))
    assert len(unwrap_optimizer(run.optimizer).param_groups) == 2


def test_groups_are_split_by_the_layers_whose_factors_they_follow(tmp_path):
    callback = LayerwiseLRCallback({r"layers\.0\.": 0.5, "norm": lambda progress: 2.0})
    run = trainer(tmp_path, callback)
    names = {parameter: name for name, parameter in run.model.named_parameters()}
    given = run.create_optimizer().param_groups
    groups = callback.split_groups(given, run.model, run.state)
    assert [group[TAG] for group in groups] == [None, [r"layers\.0\."], [r"layers\.0\."], ["norm"]]
    assert sum(len(group["params"]) for group in groups) == len(names)
    for group in groups:
        key = group[TAG] and group[TAG][0].replace("\\", "")
        assert all((key in names[p]) if key else "layers.0." not in names[p] for p in group["params"])
        assert group["weight_decay"] == given[0]["weight_decay"]


def test_a_checkpoint_of_other_groups_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{layerwise_optimizer.__module__}.uses_deepspeed", lambda args: True)
    saved, other = (
        with_optimizer(tmp_path, LayerwiseLRCallback({pattern: 0.5})).create_optimizer()
        for pattern in (r"layers\.0\.", r"layers\.[12]\.")
    )
    assert [group[TAG] for group in saved.param_groups] == [None, [r"layers\.0\."], [r"layers\.0\."], None]
    saved.load_state_dict(saved.state_dict())
    why = r"groups of this training, 4, got 4; group 1 is that of layers..0.., not of layers..\[12\].*\. Resume with"
    with pytest.raises(ValueError, match=why):
        other.load_state_dict(saved.state_dict())
    plain = trainer(tmp_path).create_optimizer()
    with pytest.raises(ValueError, match=r"training, 4, got 2; group 1 is that of no layer, not of layers"):
        other.load_state_dict(plain.state_dict())


def test_a_callback_that_the_trainer_does_not_have_is_refused(tmp_path):
    run = with_optimizer(tmp_path, FarmsLRCallback(FAST), callbacks=[FarmsLRCallback(FAST)])
    with pytest.raises(ValueError, match="callbacks must hold the callback of layerwise_optimizer, got none"):
        run.train()


def test_other_arguments_are_refused():
    with pytest.raises(ValueError, match=r"callback must be a FarmsLRCallback or LayerwiseLRCallback, got 0\.5"):
        layerwise_optimizer(0.5)


def test_optimizers_that_make_their_own_groups_are_refused(tmp_path):
    run = with_optimizer(tmp_path, FarmsLRCallback(FAST), optim="adamw_torch")
    run.get_optimizer_cls_and_kwargs = lambda args, model: (torch.optim.SGD, {"params": []})
    with pytest.raises(ValueError, match=r"whose groups can be split for layerwise_optimizer, got .*adamw_torch"):
        run.train()


def test_a_checkpoint_of_deepspeed_is_named(tmp_path):
    def run(resume=None):
        one = trainer(tmp_path, LayerwiseLRCallback({"norm": 0.5}), save_strategy="steps", save_steps=4)
        one.train(resume_from_checkpoint=resume)

    run()
    state = tmp_path / "checkpoint-4" / "trainer_state.json"
    assert state.read_text().count('"engine": null') == 1
    run(str(state.parent))
    state.write_text(state.read_text().replace('"engine": null', '"engine": "DeepSpeed ZeRO-2"'))
    with pytest.warns(
        HfFarmsWarning, match=r"under DeepSpeed ZeRO-2, this training runs without DeepSpeed: the optimizer"
    ):
        run(str(state.parent))

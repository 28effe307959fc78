"""KeepZerosCallback in a real, unmodified Trainer."""

import pytest
import torch
from models import NEEDS_MUON
from trainers import Tokens, arguments, assert_resume_is_exact, pruned, trainer, weights
from transformers import Trainer

from hf_farms import KeepZerosCallback, S2FTCallback, S2FTConfig
from hf_farms.errors import NoEffectWarning

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*", "ignore:.is_gradient_checkpointing. is deprecated")


def blocks(model):
    return {name: p for name, p in model.named_parameters() if ".layers." in name and p.ndim > 1}


def zeros(model):
    return {name: p.detach() == 0 for name, p in blocks(model).items()}


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "sgd", "adafactor"])
def test_zeros_stay_and_the_rest_learns(optim, tmp_path):
    model = pruned()
    before, masks = weights(model), zeros(model)
    trainer(tmp_path, KeepZerosCallback(), model=model, optim=optim, weight_decay=0.1).train()
    for name, parameter in blocks(model).items():
        assert (parameter[masks[name]] == 0).all(), name
        moved = parameter != before[name]
        assert moved[~masks[name]].float().mean() > 0.9, name


def test_without_it_they_are_lost(tmp_path):
    model = pruned()
    masks = zeros(model)
    trainer(tmp_path, model=model).train()
    assert all((parameter[masks[name]] != 0).any() for name, parameter in blocks(model).items())


@NEEDS_MUON
def test_an_optimizer_that_moves_weights_without_gradients(tmp_path):
    model = pruned()
    masks = zeros(model)
    muon = torch.optim.Muon([p for p in model.parameters() if p.ndim == 2], lr=1e-2)
    run = Trainer(
        model=model,
        args=arguments(tmp_path, max_steps=2),
        train_dataset=Tokens(),
        callbacks=[KeepZerosCallback()],
        optimizers=(muon, None),
    )
    run.train()
    assert all((parameter[masks[name]] == 0).all() for name, parameter in blocks(model).items())


def test_clipping_sees_the_kept_weights_only(tmp_path):
    """The norm of the gradient that the Trainer logs is that of the kept weights."""
    options = {"max_steps": 1, "logging_steps": 1, "lr_scheduler_type": "constant"}
    runs = [trainer(tmp_path / "a", KeepZerosCallback(), model=pruned(), **options)]
    runs.append(trainer(tmp_path / "b", model=pruned(), **options))
    for run in runs:
        for name, parameter in run.model.named_parameters():
            parameter.requires_grad_(".layers." in name)
        run.train()
    norms = [next(e["grad_norm"] for e in run.state.log_history if "grad_norm" in e) for run in runs]
    assert norms[0] < 0.95 * norms[1]


@pytest.mark.parametrize("layout", ["indexed", "permuted"])
def test_selective_training_of_the_kept_weights(layout, tmp_path):
    model = pruned(sparsity=0.6)
    before, masks = weights(model), zeros(model)
    config = S2FTConfig(budget=0.2, layout=layout)
    run = Trainer(
        model=model,
        args=arguments(tmp_path, max_steps=4),
        train_dataset=Tokens(),
        callbacks=[S2FTCallback(config), KeepZerosCallback()],
    )
    run.train()
    state = model.state_dict()
    assert all((state[name][mask] == 0).all() for name, mask in masks.items())
    assert sum(not torch.equal(state[name], before[name]) for name in masks) == 4


def test_experts(tmp_path):
    model = pruned("mixtral")
    masks = zeros(model)
    assert any(parameter.ndim == 3 for parameter in blocks(model).values())
    trainer(tmp_path, KeepZerosCallback(), model=model, max_steps=2).train()
    assert all((parameter[masks[name]] == 0).all() for name, parameter in blocks(model).items())


def test_resume_is_exact(tmp_path):
    assert_resume_is_exact(tmp_path, pruned, KeepZerosCallback)


def test_it_lets_go_when_the_training_ends(tmp_path):
    model = pruned()
    run = trainer(tmp_path, KeepZerosCallback(), model=model, max_steps=1)
    run.train()
    masks = zeros(model)
    run.callback_handler.callbacks = [c for c in run.callback_handler.callbacks if type(c) is not KeepZerosCallback]
    run.train()
    assert all((parameter[masks[name]] != 0).any() for name, parameter in blocks(model).items())


def test_a_dense_model_is_a_warning(tmp_path):
    with pytest.warns(NoEffectWarning, match="no trained or adapted weight in the blocks of the model is 0"):
        trainer(tmp_path, KeepZerosCallback(), max_steps=1).train()

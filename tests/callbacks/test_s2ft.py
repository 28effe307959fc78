"""S2FTCallback in a real, unmodified Trainer."""

import pytest
import torch
from families import family_model
from models import tiny
from s2ft_models import EARLY, INDEXED, LAYOUTS, PERMUTED, follows, inside, layers, plain, trainer
from trainers import Images, Tokens, arguments, same, weights
from transformers import Trainer

from hf_farms import S2FTAdapter, S2FTCallback, S2FTConfig, apply_s2ft, restore, select_channels
from hf_farms.callbacks.trainer import unwrap_optimizer
from hf_farms.errors import DataError, NoEffectWarning
from hf_farms.s2ft.saving import load_selection
from hf_farms.s2ft.surgery import selection_of
from hf_farms.s2ft.trainable import trainable_text

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*")


@LAYOUTS
def test_both_ways_of_adding_it_train_the_same_weights(config, tmp_path):
    found = []
    for early in (True, False):
        run = trainer(tmp_path, S2FTCallback(config), early=early)
        run.train()
        found.append(plain(run.model))
    assert same(*found)
    assert not same(found[0], plain(tiny("llama")))


@EARLY
@pytest.mark.parametrize("frozen", ["model.layers.1", ""])
def test_what_was_frozen_is_trained_where_it_is_selected(frozen, early, tmp_path):
    model = tiny("llama")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    run = trainer(tmp_path, S2FTCallback(INDEXED), early=early, model=model, weight_decay=0.1, max_steps=2)
    run.train()
    other = trainer(tmp_path, S2FTCallback(INDEXED), weight_decay=0.1, max_steps=2)
    other.train()
    assert same(plain(model), plain(other.model))


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_nothing_but_the_selection_changes(config, dtype, tmp_path):
    model = tiny("llama", dtype=dtype)
    before = plain(model)
    trainer(tmp_path, S2FTCallback(config), model=model, weight_decay=0.1).train()
    trained = inside(before, selection_of(model))
    for name, tensor in plain(model).items():
        changed = tensor != before[name]
        assert not (changed & ~trained[name]).any()
        assert changed[trained[name]].float().mean() > 0.9 if trained[name].any() else not changed.any()
    assert sum(int(there.sum()) for there in trained.values()) == sum(layer.selected.numel() for layer in layers(model))
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        f"{name}.selected" for name in selection_of(model).channels
    }


def test_restore_gives_the_plain_model_back(tmp_path):
    model = tiny("llama")
    learned = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    trainer(tmp_path, S2FTCallback(PERMUTED), model=model).train()
    trained = plain(model)
    assert restore(model) is model
    assert same(trained, weights(model))
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == learned
    assert all(type(module) is torch.nn.Linear for name, module in model.named_modules() if name.endswith("_proj"))


@EARLY
def test_what_is_trained_is_logged(early, tmp_path):
    run = trainer(tmp_path, S2FTCallback(INDEXED), early=early)
    run.train()
    (entry,) = [entry for entry in run.state.log_history if "s2ft/trainable_parameters" in entry]
    found = selection_of(run.model).channels
    trained = sum(32 * len(channels) for channels in found.values())
    assert entry == {
        "s2ft/trainable_parameters": trained,
        "s2ft/trainable_share": trained / tiny("llama").num_parameters(),
        "s2ft/channels/o": sum(len(found[name]) for name in found if name.endswith("o_proj")),
        "s2ft/channels/down": sum(len(found[name]) for name in found if name.endswith("down_proj")),
        "epoch": 0.0,
        "step": 0,
    }
    assert 0.09 < entry["s2ft/trainable_share"] < 0.1
    assert all(type(value) in (int, float) for value in entry.values())


@EARLY
def test_what_is_trained_is_printed_once(early, tmp_path, capsys):
    """To stdout, whatever the log level, as PEFT does it; and where the adapter lies."""
    run = trainer(tmp_path, S2FTCallback(INDEXED), early=early, log_level="error", max_steps=1)
    run.train()
    run.train()
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if line.startswith("trainable params: ")]
    assert said.count(trainable_text(run.model)) == 1
    total = tiny("llama").num_parameters()
    count = sum(layer.selected.numel() for layer in layers(run.model))
    assert line == f"trainable params: {count:,} || all params: {total:,} || trainable%: {100 * count / total:.4f}"
    start = "S2FT: the adapter (trained slices, and those of the base) was saved in "
    (end,) = [line for line in said.splitlines() if line.startswith(start)]
    assert str(tmp_path) in end
    assert said.index(line) < said.index("train_runtime") < said.index(end)


def test_the_adapter_for_a_folder_that_save_model_wrote(tmp_path, capsys):
    """As the line at the end says it."""
    run = trainer(tmp_path / "out", S2FTCallback(INDEXED), max_steps=1)
    run.train()
    assert "S2FTAdapter.from_model(model).save_pretrained(FOLDER)" in capsys.readouterr().out
    assert load_selection(tmp_path / "out") == selection_of(run.model)
    run.save_model(str(tmp_path / "elsewhere"))
    with pytest.raises(DataError, match="must hold a selection"):
        load_selection(tmp_path / "elsewhere")
    S2FTAdapter.from_model(run.model).save_pretrained(tmp_path / "elsewhere")
    assert load_selection(tmp_path / "elsewhere") == selection_of(run.model)


class Scale(torch.nn.Module):
    """A model without blocks."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, input_ids, labels=None):
        return {"loss": (self.scale * input_ids.float()).mean()}


@EARLY
@pytest.mark.parametrize(
    ("model", "data", "why"),
    [
        (lambda: family_model("resnet"), Images(), "ResNet.* has no layers of roles o, down"),
        (Scale, None, "model must"),
    ],
    ids=["resnet", "no blocks"],
)
def test_a_model_that_it_does_not_fit_trains_as_without_it(early, model, data, why, tmp_path):

    def train(callback):
        run = trainer(tmp_path, callback, early=early, model=model(), data=data, max_steps=2)
        run.train()
        return run

    with pytest.warns(NoEffectWarning, match=f"S2FTCallback has no effect, the whole model is trained: .*{why}"):
        run = train(S2FTCallback(INDEXED))
    assert same(weights(run.model), weights(train(None).model))
    assert not any("s2ft" in key for entry in run.state.log_history for key in entry)


def test_calibration_and_exclude_reach_the_selection(tmp_path):
    config = S2FTConfig(budget=0.05, strategy="gradient")
    batches = [{name: value[None] for name, value in Tokens()[i].items()} for i in range(3)]
    first = select_channels(tiny("llama"), config, calibration=batches)
    run = trainer(tmp_path, S2FTCallback(config, calibration=batches), max_steps=1)
    assert selection_of(run.model) == first
    other = trainer(tmp_path, S2FTCallback(config, calibration=batches, exclude=first), max_steps=1)
    for name, channels in selection_of(other.model).channels.items():
        assert not set(channels) & set(first.channels[name])
    with pytest.raises(ValueError, match="calibration must be given for strategy 'gradient', got None"):
        trainer(tmp_path, S2FTCallback(config))


def test_options_as_a_mapping():
    assert S2FTCallback({"budget": 0.1, "layout": "permuted"}).config == PERMUTED


@EARLY
def test_a_second_training_goes_on(early, tmp_path):
    run = trainer(tmp_path, S2FTCallback(INDEXED), early=early)
    run.train()
    once = plain(run.model)
    run.train()
    assert not same(once, plain(run.model))
    assert follows(run.model)
    trained = inside(once, selection_of(run.model))
    assert all(torch.equal(plain(run.model)[name][~trained[name]], once[name][~trained[name]]) for name in once)


def test_another_trainer_goes_on_with_the_model(tmp_path):
    model = tiny("llama")
    trainer(tmp_path, S2FTCallback(INDEXED), model=model).train()
    once = plain(model)
    trainer(tmp_path, S2FTCallback(INDEXED), model=model).train()
    assert not same(once, plain(model))
    with pytest.raises(ValueError, match=r"got another one\. Call restore\(model\) first, or pass the same config"):
        trainer(tmp_path, S2FTCallback(PERMUTED), model=model)


def test_model_init_is_refused_early(tmp_path):
    run = Trainer(
        model_init=lambda: tiny("llama"),
        args=arguments(tmp_path),
        train_dataset=Tokens(),
        callbacks=[S2FTCallback(INDEXED)],
    )
    with pytest.raises(ValueError, match="model must stay the one that S2FTCallback has changed, got another one"):
        run.train()


def test_model_init_works_late_time_after_time(tmp_path):
    """As a search for hyper-parameters does it: a new model, a new optimizer for every trial."""
    run = Trainer(model_init=lambda: tiny("llama"), args=arguments(tmp_path, max_steps=2), train_dataset=Tokens())
    run.add_callback(S2FTCallback(INDEXED))
    found = []
    for _ in range(2):
        run.train()
        found.append(plain(run.model))
        assert len(layers(run.model)) == 6
    assert same(*found)


@EARLY
def test_two_callbacks_are_refused(early, tmp_path):
    run = trainer(tmp_path, S2FTCallback(INDEXED), early=early)
    run.add_callback(S2FTCallback(INDEXED))
    with pytest.raises(ValueError, match=r"callbacks must hold one S2FTCallback, got two\. Remove one of them"):
        run.train()


def own(model):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)


def test_an_optimizer_built_before_is_refused(tmp_path):
    model = tiny("llama")
    run = Trainer(
        model=model,
        args=arguments(tmp_path),
        train_dataset=Tokens(),
        optimizers=(own(model), None),
        callbacks=[S2FTCallback(INDEXED)],
    )
    why = (
        r"hold exactly the 6 trained slices, got 0 of them and 30 other parameters\. Build it after apply_s2ft\(model\)"
    )
    with pytest.raises(ValueError, match=why):
        run.train()


@pytest.mark.parametrize("applied", [True, False], ids=["after", "before, added"])
def test_an_optimizer_of_ones_own(applied, tmp_path):
    """Built after the surgery; or before, where the callback is added and hands the slices over."""
    model = tiny("llama")
    if applied:
        apply_s2ft(model, INDEXED)
    args = arguments(tmp_path, max_steps=4)
    run = Trainer(model=model, args=args, train_dataset=Tokens(), optimizers=(own(model), None))
    run.add_callback(S2FTCallback(INDEXED))
    run.train()
    assert {id(p) for g in unwrap_optimizer(run.optimizer).param_groups for p in g["params"]} == {
        id(layer.selected) for layer in layers(model)
    }
    other = trainer(tmp_path, S2FTCallback(INDEXED))
    other.train()
    assert follows(model)
    for name, tensor in plain(model).items():
        torch.testing.assert_close(tensor, plain(other.model)[name], rtol=1e-5, atol=1e-6)

"""What the callback leaves behind: the log by layers, a file for every run, and no end of a training by itself."""

import json
from types import SimpleNamespace

import pytest
import torch
import transformers
from hf_farms_cards.figures import training
from models import tiny
from trainers import FAST, Tokens, arguments, same, signal, trainer, weights
from transformers import Trainer
from transformers.trainer_utils import HPSearchBackend

from hf_farms import FarmsLRCallback, FarmsLRConfig
from hf_farms.callbacks import farms_lr, rates
from hf_farms.errors import HfFarmsWarning, ModelError, NoEffectWarning, OutputError
from hf_farms.reports.folders import load_report

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*", "ignore:.*lr_scheduler.step.*before.*:UserWarning")

BY_LAYER = FarmsLRConfig(start=0, interval=4, unit="layer", shrink=False)
LAYER = "model.layers.1.mlp.down_proj"


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_by_layer_the_log_the_file_and_the_report_have_every_layer(tmp_path):
    callback = FarmsLRCallback(BY_LAYER)
    run = trainer(tmp_path, callback)
    run.train()
    entries = [entry for entry in run.state.log_history if f"farms_lr/{LAYER}/factor" in entry]
    assert [entry["step"] for entry in entries] == [0, 4]
    names = {key.split("/")[1] for key in entries[1] if key.endswith("/factor")}
    assert names == set(callback.memory["factors"]) | {f"model.layers.{i}" for i in range(3)}
    assert entries[1][f"farms_lr/{LAYER}/factor"] == callback.memory["factors"][LAYER] != 1
    assert entries[1][f"farms_lr/{LAYER}/alpha"] == callback.memory["layers"][LAYER]
    assert json.loads(json.dumps(entries, allow_nan=False)) == entries
    line = lines_of(tmp_path / "farms_lr.jsonl")[-1]
    assert line["layers"][LAYER]["factor"] == callback.memory["factors"][LAYER]
    assert line["layers"][LAYER].keys() == {"alpha", "alpha_stderr", "factor"}
    record = load_report(tmp_path).farms_lr
    assert {layer.name: layer.factor for layer in record.layers} == callback.memory["factors"]
    section = (tmp_path / "farms_lr.md").read_text()
    assert f"| `{LAYER}` | {callback.memory['layers'][LAYER]:.3f} |" in section


def test_by_block_the_log_has_blocks_only(tmp_path):
    run = trainer(tmp_path, FarmsLRCallback(FAST))
    run.train()
    names = {key.split("/")[1] for entry in run.state.log_history for key in entry if key.startswith("farms_lr/model")}
    assert names == {f"model.layers.{i}" for i in range(3)}
    assert load_report(tmp_path).farms_lr.layers == ()


def test_more_layers_than_trackers_take_are_in_the_file_only(tmp_path, monkeypatch):
    monkeypatch.setattr(rates, "MOST_LOGGED", 5)
    run = trainer(tmp_path, FarmsLRCallback(BY_LAYER))
    with pytest.warns(HfFarmsWarning, match="21 layers are too many for trackers. farms_lr.jsonl has") as caught:
        run.train()
    assert len([w for w in caught if issubclass(w.category, HfFarmsWarning)]) == 1
    assert not any(LAYER in key for entry in run.state.log_history for key in entry)
    assert LAYER in lines_of(tmp_path / "farms_lr.jsonl")[0]["layers"]


def test_the_history_of_an_earlier_training_in_the_same_folder_is_kept(tmp_path):
    for config in ({"interval": 2}, {"interval": 4}, {"frozen": True}):
        trainer(tmp_path, FarmsLRCallback(FarmsLRConfig(start=0, **config))).train()
    found = {path.name: [line["step"] for line in lines_of(path)] for path in tmp_path.glob("farms_lr*.jsonl")}
    assert found == {"farms_lr-1.jsonl": [0, 2, 4, 6], "farms_lr-2.jsonl": [0, 4], "farms_lr.jsonl": [0]}
    assert [m.step for m in load_report(tmp_path).farms_lr.measurements] == [0]


def search(folder, monkeypatch, trial, *, name=None, **options):
    """A training as a search of hyper-parameters makes it, without the library that chooses them."""
    monkeypatch.setattr("transformers.integrations.hp_params", lambda trial: trial.params)
    run = Trainer(
        model_init=lambda trial=None: signal(tiny("llama")),
        args=arguments(folder, max_steps=4, **options),
        train_dataset=Tokens(),
        callbacks=[FarmsLRCallback(FAST)],
    )
    run.hp_search_backend, run.hp_space = HPSearchBackend.OPTUNA, lambda trial: trial.params
    run.hp_name = name
    return run, SimpleNamespace(number=trial, params={"learning_rate": 1e-3 * (trial + 1)})


def test_every_trial_of_a_search_has_its_own_folder(tmp_path, monkeypatch, drawn):
    for number in (0, 1):
        run, trial = search(tmp_path, monkeypatch, number, save_strategy="steps", save_steps=2)
        run.train(trial=trial)
    for number in (0, 1):
        folder = tmp_path / f"run-{number}"
        assert [line["step"] for line in lines_of(folder / "farms_lr.jsonl")] == [0, 2]
        assert load_report(folder).arguments["learning_rate"] == 1e-3 * (number + 1)
        assert (folder / "figures" / "farms_lr.png").is_file()
        assert (folder / "checkpoint-4").is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run-0", "run-1"]


def test_a_trial_is_resumed_in_its_own_folder_and_may_have_a_name(tmp_path, monkeypatch):
    def name(trial):
        return f"trial of {trial.number}"

    run, trial = search(tmp_path, monkeypatch, 5, name=name, save_strategy="steps", save_steps=2)
    run.train(trial=trial)
    folder = tmp_path / "trial of 5"
    run, trial = search(tmp_path, monkeypatch, 5, name=name)
    run.train(trial=trial, resume_from_checkpoint=str(folder / "checkpoint-2"))
    assert [line["step"] for line in lines_of(folder / "farms_lr.jsonl")] == [0, 2]
    assert [path.name for path in tmp_path.rglob("farms_lr*.jsonl")] == ["farms_lr.jsonl"]


def test_a_search_of_optuna(tmp_path):
    optuna = pytest.importorskip("optuna", reason="optuna is not installed")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    run = Trainer(
        model_init=lambda trial=None: signal(tiny("llama")),
        args=arguments(tmp_path, max_steps=4, eval_strategy="steps", eval_steps=4),
        train_dataset=Tokens(),
        eval_dataset=Tokens(8),
        callbacks=[FarmsLRCallback(FAST)],
    )
    space = {"learning_rate": [1e-3, 1e-2]}
    run.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", space["learning_rate"])},
        n_trials=2,
        backend="optuna",
        sampler=optuna.samplers.GridSampler(space, seed=0),
    )
    rates = {load_report(tmp_path / f"run-{number}").arguments["learning_rate"] for number in (0, 1)}
    assert rates == {1e-3, 1e-2}


class At(transformers.TrainerCallback):
    """Does something to the model before a step."""

    def __init__(self, step, what):
        self.step, self.what = step, what

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            self.what(model)


FAILURES = [
    RuntimeError("CUDA out of memory."),
    ValueError("alphas must be finite"),
    torch.linalg.LinAlgError("did not converge"),
    ModelError("weights must be loaded"),
    NotImplementedError("no kernel"),
    AttributeError("'Linear' object has no attribute 'lora_A'"),
]


@pytest.mark.parametrize("where", ["analyze", "allocate_lr"])
def test_no_error_of_measuring_ends_the_training(where, tmp_path, monkeypatch):
    """It goes on at the rates of the last measurement, is told once, and measures again."""
    real, failures = getattr(farms_lr, where), list(FAILURES)
    callback = FarmsLRCallback(FarmsLRConfig(start=0, interval=1))
    seen = []

    def fail(*args, **kwargs):
        seen.append(dict(callback.memory["factors"]))
        if callback.memory["step"] == 0 and failures:
            raise failures.pop(0)
        return real(*args, **kwargs)

    monkeypatch.setattr(farms_lr, where, fail)
    with pytest.warns(HfFarmsWarning, match="stay as they are at step 1: RuntimeError: CUDA out of memory") as caught:
        trainer(tmp_path, callback).train()
    assert len([w for w in caught if issubclass(w.category, HfFarmsWarning)]) == 1
    assert failures == []
    assert all(factors == seen[1] for factors in seen[1:8])
    assert callback.memory["step"] == 7
    assert [line["step"] for line in lines_of(tmp_path / "farms_lr.jsonl")] == [0, 7]


def test_an_interrupt_while_measuring_ends_the_training(tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt("as Ctrl-C does")

    monkeypatch.setattr(farms_lr, "analyze", interrupt)
    with pytest.raises(KeyboardInterrupt, match="as Ctrl-C does"):
        trainer(tmp_path, FarmsLRCallback(FAST)).train()


def test_a_model_whose_layers_cannot_be_found_is_trained_all_the_same(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise TypeError("unhashable")

    monkeypatch.setattr(farms_lr, "ModelBlockSource", fail)
    run = trainer(tmp_path / "a", FarmsLRCallback(FAST))
    with pytest.warns(NoEffectWarning, match="FarmsLRCallback has no effect: TypeError: unhashable"):
        run.train()
    plain = trainer(tmp_path / "b")
    plain.train()
    assert same(weights(run.model), weights(plain.model))


def test_weights_that_vanish_on_the_way_keep_the_rates(tmp_path):
    """As where something else has sharded or offloaded them: what is left is empty, or of another shape."""

    def empty(model):
        layer = model.model.layers[1].mlp
        weight = layer.up_proj.weight.detach()
        layer.up_proj.weight = torch.nn.Parameter(torch.empty(0))
        layer.up_proj.forward = lambda x: torch.nn.functional.linear(x, weight)

    callback = FarmsLRCallback(FarmsLRConfig(start=0, interval=1))
    run = trainer(tmp_path, callback)
    run.add_callback(At(2, empty))
    with pytest.warns(HfFarmsWarning, match=r"stay as they are at step 3: .*model.layers.1.mlp.up_proj"):
        run.train()
    assert callback.memory["step"] == 2
    assert run.state.global_step == 8


@pytest.mark.parametrize("error", [KeyError("blocks"), RuntimeError("no fonts"), TypeError("not JSON")])
def test_a_figure_that_cannot_be_drawn_does_not_end_the_training(error, monkeypatch, tmp_path):
    def fail(*_):
        raise error

    monkeypatch.setattr(training, "write_training_history", fail)
    run = trainer(tmp_path, FarmsLRCallback(FAST))
    with pytest.warns(HfFarmsWarning, match=rf"could not be recorded for the card: {type(error).__name__}: "):
        assert run.train().global_step == 8


def test_a_history_that_cannot_be_kept_does_not_end_the_training(tmp_path):
    path = tmp_path / "farms_lr.jsonl"
    path.write_bytes(b"\xff\x00 no json\n[1]\n")
    run = trainer(tmp_path, FarmsLRCallback(FAST), save_strategy="steps", save_steps=4)
    run.train()
    again = trainer(tmp_path, FarmsLRCallback(FAST))
    path.unlink()
    path.mkdir()
    # Before the first step, as there is nothing to lose yet.
    with pytest.raises(OutputError, match=r"farms_lr.jsonl must be a file, got the folder"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))

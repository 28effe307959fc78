"""Logs of FarmsLRCallback: monitor mode, effective rates and figures in trackers."""

import json
import warnings

import pytest
import torch
from trainers import FAST, InTheStep, arguments, rate_of, same, trainer, weights

from hf_farms import FarmsLRCallback, FarmsLRConfig, allocate_lr, analyze
from hf_farms.callbacks import history
from hf_farms.callbacks.compatibility import check_supported
from hf_farms.errors import NoEffectWarning
from hf_farms.reports.folders import load_report

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*", "ignore:.*lr_scheduler.step.*before.*:UserWarning")

MONITOR = FarmsLRConfig(start=0, interval=4, monitor=True)


def events_of(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = {path.parent for path in folder.rglob("events.out.tfevents*")}
    return EventAccumulator(str(events)).Reload()


def test_monitoring_changes_nothing_and_warns_of_nothing(tmp_path):
    """Warnings are errors here."""
    run, plain = trainer(tmp_path / "a", FarmsLRCallback(MONITOR)), trainer(tmp_path / "b")
    run.train(), plain.train()
    assert same(weights(run.model), weights(plain.model))
    entries = [entry for entry in run.state.log_history if "farms_lr/seconds" in entry]
    assert [entry["step"] for entry in entries] == [0, 4]
    assert all(entry["farms_lr/model.layers.1/alpha"] > 1 for entry in entries)
    assert all(entry["farms_lr/model.layers.1/factor"] == 1 for entry in entries)
    section = (tmp_path / "a" / "farms_lr.md").read_text()
    assert "weight spectra were measured, and all learning rates stayed as they were. 2 measurements took" in section
    assert load_report(tmp_path / "a").farms_lr.config.monitor


def test_monitoring_resumes_and_works_where_rates_cannot_be_changed(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}
    trainer(tmp_path, FarmsLRCallback(MONITOR), **options).train()
    again = FarmsLRCallback(MONITOR)
    trainer(tmp_path, again, **options).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    lines = (tmp_path / "farms_lr.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 4]
    model = torch.nn.Linear(2, 2)
    args = arguments(tmp_path, optim="lomo")
    check_supported(args, model, None, monitor=True)
    with pytest.raises(ValueError, match="got 'lomo', which updates weights during the backward"):
        check_supported(args, model, None)


def test_options_of_factors_have_no_effect_on_monitoring():
    with pytest.warns(NoEffectWarning, match=r"^`map` has no effect: it applies to monitor=False\.$"):
        FarmsLRCallback({"monitor": True, "map": "step"})


@pytest.mark.parametrize("unit", ["block", "layer"])
def test_tensorboard_gets_effective_rates_and_a_figure(unit, tmp_path, drawn):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    callback = FarmsLRCallback(FarmsLRConfig(start=0, interval=4, unit=unit, shrink=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = trainer(tmp_path, callback, report_to=["tensorboard"])
        weight, used = run.model.model.layers[0].mlp.up_proj.weight, []
        run.add_callback(InTheStep(lambda o, args, _: used.append(rate_of(args[0], weight))))
        run.train()
        events = events_of(tmp_path)
    tags = {tag.rpartition("farms_lr/")[2]: tag for tag in events.Tags()["scalars"]}
    name = "model.layers.0" if unit == "block" else "model.layers.0.mlp.up_proj"
    found = events.Scalars(tags[f"{name}/learning_rate"])
    assert [event.step for event in found] == [4, 8]
    # As the Trainer logs its own: of the step that was made last.
    assert [event.value for event in found] == pytest.approx([used[3], used[7]])
    factors = [event.value for event in events.Scalars(tags[f"{name}/factor"])]
    assert used[0] == pytest.approx(1e-2 * factors[0])
    assert factors[0] != 1
    assert ("model.layers.0.mlp.up_proj/learning_rate" in tags) == (unit == "layer")
    (image,) = events.Tags()["images"]
    assert image.endswith("farms_lr/alphas")
    assert [event.step for event in events.Images(image)] == [0, 4]
    assert events.Images(image)[1].encoded_image_string.startswith(b"\x89PNG")


def test_figures_are_drawn_for_trackers_only_and_not_for_every_measurement(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(history.History, "_image", lambda self: drawn.append(len(self.entries)))
    trainer(tmp_path / "a", FarmsLRCallback(FAST)).train()
    assert drawn == []
    monkeypatch.setattr(history, "log_image_to_trackers", lambda state, name, make: make())
    monkeypatch.setattr(history, "MOST_FIGURES", 2)
    trainer(tmp_path / "b", FarmsLRCallback(FarmsLRConfig(start=0, interval=1))).train()
    assert drawn == [1, 5, 8]


@pytest.mark.filterwarnings("ignore")
def test_wandb_gets_effective_rates_and_a_figure(tmp_path, wandb, drawn):
    run = trainer(tmp_path, FarmsLRCallback(FAST), report_to=["wandb"])
    run.train()
    summary = dict(wandb.run.summary)
    wandb.finish()
    assert list(tmp_path.rglob("media/images/farms_lr/alphas_*.png"))
    entries = [entry for entry in run.state.log_history if "farms_lr/seconds" in entry]
    base = [entry["learning_rate"] for entry in run.state.log_history if "learning_rate" in entry][-1]
    factor = entries[-1]["farms_lr/model.layers.2/factor"]
    assert summary["train/farms_lr/model.layers.2/learning_rate"] == pytest.approx(base * factor)


def test_alphadecay_scales_the_weight_decay_of_layers_only(tmp_path):
    config = FarmsLRConfig.alphadecay(min_eigenvalues=4, interval=4)
    assert config.quantity == "weight_decay"
    assert config.spectra.window_rows is None
    callback = FarmsLRCallback(config)
    run = trainer(tmp_path, callback, weight_decay=0.1, max_steps=1)
    factors = allocate_lr(analyze(run.model, config.spectra), config=config)
    with pytest.warns(NoEffectWarning, match="interval=4 has no effect"):
        run.train()
    assert callback.memory["factors"] == factors
    assert min(factors.values()) == pytest.approx(2 / 3)
    assert max(factors.values()) == pytest.approx(3)
    assert factors["model.layers.0.self_attn.q_proj"] == factors["model.layers.2.mlp.down_proj"] == 1

"""FarmsLRCallback in a real, unmodified Trainer."""

import json
import math
import warnings

import pytest
import torch
import transformers
from hf_farms_cards.figures.training import write_training_history
from models import tiny
from trainers import FAST, InTheStep, Tokens, arguments, hand_built, rate_of, same, signal, trainer, weights
from transformers import Trainer

from hf_farms import FarmsConfig, FarmsLRCallback, FarmsLRConfig
from hf_farms.allocation.lr import allocate_lr
from hf_farms.callbacks.trainer import unwrap_optimizer
from hf_farms.errors import HfFarmsWarning, NoEffectWarning
from hf_farms.reports.lr_history import LRHistoryEntry
from hf_farms.spectra.analysis import analyze

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*", "ignore:.*lr_scheduler.step.*before.*:UserWarning")


@pytest.mark.parametrize("how", ["argument", "add_callback"])
def test_it_is_all_it_takes(how, tmp_path):
    run = trainer(tmp_path, FarmsLRCallback(FAST) if how == "argument" else None)
    if how == "add_callback":
        run.add_callback(FarmsLRCallback(FAST))
    run.train()
    entries = [entry for entry in run.state.log_history if "farms_lr/model.layers.0/alpha" in entry]
    assert [entry["step"] for entry in entries] == [0, 2, 4, 6]
    plain = trainer(tmp_path / "plain")
    plain.train()
    assert not same(weights(run.model), weights(plain.model))


def test_equal_to_an_optimizer_with_real_groups_bit_by_bit(tmp_path):
    config = FarmsLRConfig(start=0, frozen=True)
    options = {"lr_scheduler_type": "linear", "max_grad_norm": 1.0, "gradient_accumulation_steps": 2}
    options |= {"optim": "adamw_torch_fused"}  # the default of a Trainer depends on the version of torch
    run = trainer(tmp_path / "a", FarmsLRCallback(config), **options)
    factors = allocate_lr(analyze(run.model), config=config)
    by_block = [factors[f"model.layers.{i}.self_attn.q_proj"] for i in range(3)]
    assert max(by_block) - min(by_block) > 0.3
    run.train()
    model = signal(tiny("llama"))
    optimizer = hand_built(model, by_block, 1e-2)
    schedule = transformers.get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=8)
    other = Trainer(
        model=model, args=arguments(tmp_path / "b", **options), train_dataset=Tokens(), optimizers=(optimizer, schedule)
    )
    other.train()
    assert same(weights(run.model), weights(other.model))


def test_factors_of_one_are_no_callback_bit_by_bit(tmp_path):
    run = trainer(tmp_path / "a", FarmsLRCallback(FarmsLRConfig(start=0, interval=2, min_scale=1, max_scale=1)))
    plain = trainer(tmp_path / "b")
    with pytest.warns(NoEffectWarning, match=r"had no effect: all factors were 1, because .* or the scales are 1"):
        run.train()
    plain.train()
    assert same(weights(run.model), weights(plain.model))


def test_alphas_that_differ_by_chance_have_no_effect(tmp_path):
    run = trainer(tmp_path / "a", FarmsLRCallback(FAST), model=tiny("llama"), learning_rate=1e-4)
    plain = trainer(tmp_path / "b", model=tiny("llama"), learning_rate=1e-4)
    with pytest.warns(NoEffectWarning, match=r"had no effect: all factors were 1, because alphas differed by no more"):
        run.train()
    plain.train()
    assert same(weights(run.model), weights(plain.model))
    section = (tmp_path / "a" / "farms_lr.md").read_text()
    assert "all factors stayed 1 (alphas differed by no more than chance, fewer than two were compared" in section


def test_ends_that_leave_too_few_blocks_are_named_once(tmp_path):
    run = trainer(tmp_path, FarmsLRCallback(FarmsLRConfig(start=0, interval=1, ends="apart")), max_steps=3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.train()
    messages = [str(warning.message) for warning in caught if warning.category is NoEffectWarning]
    assert [message.partition(":")[0] for message in messages] == [
        "`ends='apart'` leaves fewer than two scores to compare",
        "FarmsLRCallback had no effect",
    ]
    assert "fewer than two were compared" in messages[1]


WSD = {"num_decay_steps": 2}


@pytest.mark.parametrize(
    ("optim", "schedule", "options"),
    [(optim, "linear", {}) for optim in ("adamw_torch", "sgd", "adafactor", "adagrad", "rmsprop")]
    + [
        ("adamw_torch_fused", schedule, {})
        for schedule in ("cosine", "cosine_with_restarts", "polynomial", "constant_with_warmup", "inverse_sqrt")
    ]
    + [
        ("adamw_torch_fused", "warmup_stable_decay", {"warmup_steps": 2, "lr_scheduler_kwargs": WSD}),
    ]
    + [
        ("adamw_torch_fused", schedule, {"eval_strategy": "steps", "eval_steps": 2})
        for schedule in ("reduce_lr_on_plateau", "greedy")
    ],
)
def test_optimizers_and_schedules_keep_their_groups(optim, schedule, options, tmp_path):
    """The scheduler gives every block the rate of a plain run, times its factor."""
    seen = {}
    for callback in (FarmsLRCallback(FarmsLRConfig(start=0, frozen=True)), None):
        options = {"optim": optim, "lr_scheduler_type": schedule, "learning_rate": 1e-4, "max_steps": 6, **options}
        run = trainer(tmp_path, callback, **options)
        weight = run.model.model.layers[0].self_attn.q_proj.weight
        rates = seen[callback is None] = []
        run.add_callback(InTheStep(lambda o, args, _, w=weight, r=rates: r.append(float(rate_of(args[0], w)))))
        run.train()
        groups = run.optimizer.param_groups
        assert len(groups) == 2
        assert sum(len(group["params"]) for group in groups) == len(list(run.model.parameters()))
        assert groups[0]["lr"] == run.lr_scheduler.get_last_lr()[0]
        if callback is not None:
            factor = callback.memory["factors"]["model.layers.0.self_attn.q_proj"]
    assert factor < 0.9
    assert seen[False] == pytest.approx([rate * factor for rate in seen[True]])
    assert len(seen[True]) == 6


@pytest.mark.parametrize(
    ("quantity", "lr", "decay"),
    [("lr", 1, 0), ("weight_decay", 0, 1), ("both", 1, 1), ("constant_decay", 1, -1)],
)
def test_what_the_factor_is_applied_to(quantity, lr, decay, tmp_path):
    seen = []
    callback = FarmsLRCallback(FarmsLRConfig(start=0, frozen=True, quantity=quantity))
    run = trainer(tmp_path, callback, weight_decay=0.1, lr_scheduler_type="constant", max_steps=1)
    weight = run.model.model.layers[0].self_attn.q_proj.weight

    def look(optimizer, args, kwargs):
        group = next(g for g in args[0].param_groups if any(p is weight for p in g["params"]))
        seen.append((group["lr"], group["weight_decay"]))

    run.add_callback(InTheStep(look))
    run.train()
    factor = callback.memory["factors"]["model.layers.0.self_attn.q_proj"]
    assert abs(factor - 1) > 0.2
    assert seen == [(pytest.approx(1e-2 * factor**lr), pytest.approx(0.1 * factor**decay))]


@pytest.mark.parametrize(("interval", "steps"), [(2, [0, 2, 4, 6]), ("epoch", [0, 4])])
def test_resume_is_exact_with_the_same_alphas(interval, steps, tmp_path):
    """Also from the middle of an epoch, where nothing is to be measured."""
    options = {"save_strategy": "steps", "save_steps": 3, "lr_scheduler_type": "cosine"}
    options |= {"per_device_train_batch_size": 16 if interval == "epoch" else 4}
    config = FarmsLRConfig(start=0, interval=interval, smoothing=0.5)
    straight = FarmsLRCallback(config)
    whole = trainer(tmp_path / "a", straight, **options)
    whole.train()
    first = trainer(tmp_path / "b", FarmsLRCallback(config), **options)
    first.train()
    again = FarmsLRCallback(config)
    second = trainer(tmp_path / "b", again, **options)
    second.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-3"))
    assert same(weights(whole.model), weights(second.model))
    assert again.memory == straight.memory
    lines = [json.loads(line) for line in (tmp_path / "b" / "farms_lr.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == steps


def test_checkpoints_are_those_of_a_plain_trainer(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 4, "max_steps": 4}
    trainer(tmp_path / "a", FarmsLRCallback(FAST), **options).train()
    trainer(tmp_path / "b", **options).train()
    states = [torch.load(tmp_path / x / "checkpoint-4" / "optimizer.pt", weights_only=True) for x in "ab"]
    layouts = [[{**group, "params": len(group["params"])} for group in state["param_groups"]] for state in states]
    assert layouts[0] == layouts[1]
    resumed = trainer(tmp_path / "a", max_steps=6)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))
    assert resumed.state.global_step == 6


def test_a_checkpoint_without_the_callback_is_resumed_with_it(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2}
    trainer(tmp_path, max_steps=4, **options).train()
    run = trainer(tmp_path, FarmsLRCallback(FAST), **options)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    state = json.loads((tmp_path / "checkpoint-8" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["FarmsLRCallback"]["attributes"]["memory"]["step"] == 6


def test_restored_callback_objects_go_on_too(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 3, "restore_callback_states_from_checkpoint": True}
    whole = trainer(tmp_path / "a", FarmsLRCallback(FAST), **options)
    whole.train()
    second = trainer(tmp_path / "a", FarmsLRCallback(FAST), **options)
    second.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert same(weights(whole.model), weights(second.model))


def test_a_second_training_starts_afresh(tmp_path):
    run = trainer(tmp_path, FarmsLRCallback(FAST))
    run.train()
    run.train()
    assert [e["step"] for e in run.state.log_history if "farms_lr/seconds" in e] == [0, 2, 4, 6]


def test_a_step_that_failed_halfway_leaves_nothing_behind(tmp_path):
    run = trainer(tmp_path, FarmsLRCallback(FAST))
    failures = [RuntimeError("out of memory")]

    def fail(optimizer, args, kwargs):
        if failures:
            assert len(args[0].param_groups) > len(optimizer.param_groups) == 2
            raise failures.pop()

    watch = InTheStep(fail)
    run.add_callback(watch)
    with pytest.raises(RuntimeError, match="out of memory"):
        run.train()
    run.remove_callback(watch)
    run.train()
    assert len(run.optimizer.param_groups) == 2


@pytest.mark.parametrize(
    ("config", "options", "steps"),
    [
        (FarmsLRConfig(interval=0.1), {"warmup_steps": 3}, [3, 4, 5, 6, 7]),
        (FarmsLRConfig(start=0.5, interval=0.25), {}, [4, 6]),
        (FarmsLRConfig(start=1, interval=3), {}, [1, 4, 7]),
        (FarmsLRConfig(start=2, frozen=True), {}, [2]),
        (FarmsLRConfig(start=0, interval="epoch"), {"per_device_train_batch_size": 16}, [0, 4]),
        (FarmsLRConfig(start=2, interval="epoch"), {"per_device_train_batch_size": 16}, [2, 4]),
    ],
)
def test_when_it_measures(config, options, steps, tmp_path):
    run = trainer(tmp_path, FarmsLRCallback(config), **options)
    run.train()
    assert [e["step"] for e in run.state.log_history if "farms_lr/seconds" in e] == steps


@pytest.mark.filterwarnings("ignore:FarmsLRCallback had no effect")
def test_smoothing_mixes_earlier_alphas(tmp_path):
    found = {}
    for keep in (0.0, 0.75):
        # Without effect on the weights, so that both runs measure the same.
        callback = FarmsLRCallback(
            FarmsLRConfig(start=0, interval=1, smoothing=keep, min_scale=1, max_scale=1, normalize=True)
        )
        trainer(tmp_path / str(keep), callback, max_steps=3).train()
        lines = (tmp_path / str(keep) / "farms_lr.jsonl").read_text().splitlines()
        found[keep] = [json.loads(line)["blocks"][1]["alpha"] for line in lines]
    first, second, third = found[0.0]
    expected = [first, 0.75 * first + 0.25 * second]
    expected.append(0.75 * expected[1] + 0.25 * third)
    assert found[0.75] == pytest.approx(expected)
    assert len(set(found[0.0])) == 3


def test_the_log_of_the_trainer_is_not_disturbed(tmp_path):
    run, plain = trainer(tmp_path / "a", FarmsLRCallback(FAST)), trainer(tmp_path / "b")
    run.train(), plain.train()
    own = [e for e in run.state.log_history if not any(key.startswith("farms_lr") for key in e)]
    assert [e.keys() for e in own] == [e.keys() for e in plain.state.log_history]
    assert "train_runtime" in run.state.log_history[-1]
    (cost,) = [e for e in run.state.log_history if "farms_lr/share_of_time" in e]
    seconds = math.fsum(e.get("farms_lr/seconds", 0.0) for e in run.state.log_history)
    assert cost["farms_lr/seconds_in_all"] == pytest.approx(seconds)
    assert 0 < cost["farms_lr/share_of_time"] < 1
    for entry in run.state.log_history:
        assert all(type(value) in (int, float) for value in entry.values())


def test_trackers_get_the_numbers(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = trainer(tmp_path, FarmsLRCallback(FAST), report_to=["tensorboard"])
        run.train()
        (folder,) = {path.parent for path in tmp_path.rglob("events.out.tfevents*")}
        events = EventAccumulator(str(folder)).Reload()
    tags = {tag.rpartition("farms_lr/")[2]: tag for tag in events.Tags()["scalars"]}
    assert [event.step for event in events.Scalars(tags["model.layers.0/factor"])] == [0, 2, 4, 6]
    assert 0 < events.Scalars(tags["share_of_time"])[0].value < 1


@pytest.mark.filterwarnings("ignore")
def test_trackio_gets_the_numbers(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    pytest.importorskip("trackio", reason="trackio is not installed")
    from trackio.sqlite_storage import SQLiteStorage

    run = trainer(tmp_path, FarmsLRCallback(FAST), report_to=["trackio"], project="farms", run_name="run")
    run.train()
    logs = SQLiteStorage.get_logs("farms", "run")
    found = [entry["train/farms_lr/model.layers.0/factor"] for entry in logs if "train/farms_lr/seconds" in entry]
    assert found == [e["farms_lr/model.layers.0/factor"] for e in run.state.log_history if "farms_lr/seconds" in e]
    assert [0 < entry["train/farms_lr/share_of_time"] < 1 for entry in logs if "train/farms_lr/share_of_time" in entry]


@pytest.mark.filterwarnings("ignore")
def test_wandb_gets_the_numbers(tmp_path, wandb):
    run = trainer(tmp_path, FarmsLRCallback(FAST), report_to=["wandb"])
    run.train()
    summary = dict(wandb.run.summary)
    wandb.finish()
    last = [entry for entry in run.state.log_history if "farms_lr/seconds" in entry][-1]
    for name in ("alpha", "alpha_stderr", "factor"):
        assert summary[f"train/farms_lr/model.layers.2/{name}"] == last[f"farms_lr/model.layers.2/{name}"]
    assert 0 < summary["train/farms_lr/share_of_time"] < 1


def test_history_figure_and_section_are_written(tmp_path, drawn):
    trainer(tmp_path, FarmsLRCallback(FAST)).train()
    lines = [json.loads(line) for line in (tmp_path / "farms_lr.jsonl").read_text().splitlines()]
    assert len(lines) == 4
    assert {"name", "alpha", "alpha_stderr", "factor"} == lines[0]["blocks"][0].keys()
    assert (tmp_path / "figures" / "farms_lr.png").read_bytes().startswith(b"\x89PNG")
    section = (tmp_path / "farms_lr.md").read_text()
    assert f"| model.layers.0 | {lines[-1]['blocks'][0]['alpha']:.3f} |" in section
    assert "(larger alpha, less trained) got a larger factor on the learning rate" in section


@pytest.mark.parametrize(
    ("quantity", "said"),
    [("weight_decay", "factor on the weight decay."), ("constant_decay", "factor on the learning rate, its product")],
)
def test_the_section_says_what_was_scaled(quantity, said, tmp_path, drawn):
    block = {"name": "0", "alpha": 2.0, "alpha_stderr": None, "factor": 1.5}
    history = [{"step": 3, "epoch": 0.1, "seconds": 1.0, "blocks": [block, {**block, "name": "1", "factor": 0.5}]}]
    entries = [LRHistoryEntry.from_line(json.dumps(line)) for line in history]
    write_training_history(entries, FarmsLRConfig(map="sqrt", quantity=quantity), tmp_path)
    section = (tmp_path / "farms_lr.md").read_text()
    assert said in section
    assert "(map sqrt, unit block, mean factor 1): blocks with" in section
    assert "| 0 | 2.000 | – | 1.500 |" in section


def test_nan_keeps_the_last_factors_and_warns_once(tmp_path):
    class Break(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 2:
                model.model.layers[1].mlp.up_proj.weight.data[0, 0] = math.nan

    callback = FarmsLRCallback(FarmsLRConfig(start=0, interval=1))
    run = trainer(tmp_path, callback, max_steps=5, max_grad_norm=0)
    run.add_callback(Break())
    with pytest.warns(HfFarmsWarning) as caught:
        run.train()
    ours = [str(w.message) for w in caught if issubclass(w.category, HfFarmsWarning)]
    assert len(ours) == 1
    assert "stay as they are at step 2" in ours[0]
    assert "model.layers.1.mlp.up_proj" in ours[0]
    assert callback.memory["step"] == 1


def test_a_model_without_layers_is_a_warning(tmp_path):
    class Scale(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))

        def forward(self, input_ids, labels=None):
            return {"loss": (self.scale * input_ids.float()).mean()}

    run = trainer(tmp_path, FarmsLRCallback(FAST), model=Scale())
    with pytest.warns(NoEffectWarning, match="FarmsLRCallback has no effect: model must have blocks"):
        run.train()


def test_a_start_beyond_the_end_is_a_warning(tmp_path):
    with pytest.warns(NoEffectWarning, match="starts at step 100 of 8"):
        trainer(tmp_path, FarmsLRCallback(FarmsLRConfig(start=100))).train()


@pytest.mark.parametrize(
    ("interval", "options"),
    [(8, {}), (100, {}), ("epoch", {"max_steps": -1, "num_train_epochs": 1, "per_device_train_batch_size": 16})],
)
def test_an_interval_beyond_the_end_is_a_warning(interval, options, tmp_path):
    message = rf"interval={interval!r} has no effect: the training has .* measured once, at step 0\. Set a smaller"
    with pytest.warns(NoEffectWarning, match=message):
        trainer(tmp_path / "a", FarmsLRCallback(FarmsLRConfig(start=0, interval=interval)), **options).train()
    with pytest.warns(NoEffectWarning, match=r"^`interval` has no effect: it applies to frozen=False\.$"):
        frozen = FarmsLRCallback(FarmsLRConfig(start=0, interval=interval, frozen=True))
    # Warnings are errors here.
    trainer(tmp_path / "b", frozen, **options).train()


def test_two_instances_are_refused(tmp_path):
    run = trainer(tmp_path, FarmsLRCallback(FAST))
    second = FarmsLRCallback(FAST)
    run.add_callback(second)
    with pytest.raises(ValueError, match="must hold one FarmsLRCallback, got two"):
        run.train()
    assert not unwrap_optimizer(run.optimizer)._optimizer_step_pre_hooks
    run.remove_callback(second)
    run.train()


def test_the_config_travels_as_a_mapping():
    callback = FarmsLRCallback(FarmsLRConfig(map="step", spectra=FarmsConfig(window_rows=8)))
    again = FarmsLRCallback(**json.loads(json.dumps(callback.state()["args"])))
    assert again.config == callback.config

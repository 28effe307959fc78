"""Folders that real trainings with the callbacks leave behind -> report -> card."""

import json
import shutil

import pytest
from hf_farms_cards import write_card
from s2ft_models import trainer as s2ft_trainer
from trainers import FAST, trainer
from transformers import TrainerCallback

from hf_farms import FarmsLRCallback, S2FTCallback, S2FTConfig
from hf_farms.errors import DataError, HfFarmsWarning
from hf_farms.reports import REPORT_NAME, SpectralReport, TrainReport
from hf_farms.reports.folders import load_report, training_report
from hf_farms.reports.recording import record_training
from hf_farms.s2ft.surgery import selection_of
from hf_farms.s2ft.trainable import summary

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*", "ignore:.*lr_scheduler.step.*before.*:UserWarning")


@pytest.fixture(scope="module")
def farms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "farms"
    run = trainer(folder, FarmsLRCallback(FAST), save_strategy="steps", save_steps=4)
    run.train()
    run.save_model()
    return folder


@pytest.fixture(scope="module")
def selective(tmp_path_factory):
    """The folder, and what was trained."""
    folder = tmp_path_factory.mktemp("trained") / "s2ft"
    options = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    run = s2ft_trainer(folder, S2FTCallback(S2FTConfig(budget=0.1)), **options)
    run.train()
    return folder, selection_of(run.model), summary(run.model)


def test_layer_wise_rates_from_the_files_alone(farms):
    report = training_report(farms)
    lines = [json.loads(line) for line in (farms / "farms_lr.jsonl").read_text().splitlines()]
    assert (report.method, report.model_type, report.steps, report.epochs) == ("farms-lr", "llama", 8, 0.5)
    assert report.farms_lr.config == FAST
    assert [m.step for m in report.farms_lr.measurements] == [line["step"] for line in lines]
    assert report.farms_lr.measurements[-1].blocks[1].factor == lines[-1]["blocks"][1]["factor"]
    assert report.num_parameters == 29_664
    assert report.metrics["loss"] > 0
    card = write_card(report, farms).read_text(encoding="utf-8")
    assert f"| {lines[-1]['blocks'][0]['factor']:.3f} |" in card
    assert (farms / "figures" / "farms_lr-dark.png").is_file()


def test_a_checkpoint_tells_of_its_own_time(farms):
    report = training_report(farms / "checkpoint-4")
    assert (report.steps, report.farms_lr.measurements[-1].step) == (4, 4)


def test_selective_training_from_the_files_alone(selective):
    folder, selection, numbers = selective
    report = training_report(folder)
    assert report.method == "s2ft"
    assert report.s2ft.config == selection.config
    assert {layer.name: layer.num_selected for layer in report.s2ft.layers} == {
        name: len(channels) for name, channels in selection.channels.items()
    }
    assert (report.num_trained, report.num_parameters) == (numbers["trainable_parameters"], 29_664)
    assert report.metrics["eval_loss"] > 0
    assert not [name for name in report.metrics if name.endswith(("runtime", "per_second"))]


def test_what_the_callback_records_is_all_of_it(selective):
    folder, selection, _ = selective
    assert (folder / REPORT_NAME).is_file()
    report = load_report(folder)
    assert TrainReport.from_json(report.to_json()) == report
    assert report.arguments["learning_rate"] == 1e-2
    assert report.arguments["optim"].startswith("adamw")
    assert report.arguments["seed"] == 0
    # The callback's numbers are logged before the Trainer's own summary, so that it is there too.
    assert {"loss", "eval_loss", "train_loss"} <= report.metrics.keys()
    seen = training_report(folder)
    assert (report.num_trained, report.num_parameters) == (seen.num_trained, seen.num_parameters)
    assert sorted(report.s2ft.layers, key=lambda layer: layer.name) == sorted(
        seen.s2ft.layers, key=lambda layer: layer.name
    )
    card = write_card(report, folder).read_text(encoding="utf-8")
    assert "| `learning_rate` | 0.01 |" in card
    channels = len(selection.channels["model.layers.0.mlp.down_proj"])
    assert f"| `model.layers.0` | {channels} |" in card


def test_an_argument_that_json_has_no_number_for_does_not_end_the_training(tmp_path):
    s2ft_trainer(tmp_path, S2FTCallback(S2FTConfig(budget=0.1)), max_grad_norm=float("inf")).train()
    report = load_report(tmp_path)
    assert report.arguments["max_grad_norm"] == "inf"
    assert "| `max_grad_norm` | inf |" in write_card(report, tmp_path).read_text(encoding="utf-8")


def test_what_the_other_callback_records_is_all_of_it_too(farms):
    report, seen = load_report(farms), training_report(farms)
    assert report.arguments["learning_rate"] > 0
    assert report.farms_lr.config == FAST
    assert report.farms_lr.measurements == seen.farms_lr.measurements
    assert (report.num_trained, report.num_parameters) == (29_664, 29_664)


@pytest.mark.parametrize("callback", [FarmsLRCallback(FAST), S2FTCallback(S2FTConfig(budget=0.1))])
def test_a_place_that_cannot_be_written_does_not_end_the_training(callback, tmp_path):
    class Taken(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            (tmp_path / REPORT_NAME).mkdir(exist_ok=True)

    run = trainer(tmp_path, callback) if isinstance(callback, FarmsLRCallback) else s2ft_trainer(tmp_path, callback)
    run.add_callback(Taken())
    with pytest.warns(HfFarmsWarning, match="could not be recorded for the card"):
        run.train()
    assert run.state.global_step > 0


@pytest.mark.parametrize("first", ["farms", "s2ft"])
def test_two_callbacks_of_one_training_share_a_report(first, selective, tmp_path):
    _, selection, _ = selective
    args = trainer(tmp_path).args
    (tmp_path / "farms_lr.jsonl").write_text(
        json.dumps({"step": 0, "epoch": 0, "seconds": 1.0, "blocks": [], "layers": {}}) + "\n"
    )
    state = trainer(tmp_path).state
    state.global_step = 8

    def farms():
        record_training(args, state, None, num_parameters=200, num_trained=20, farms_lr=FAST)

    def s2ft():
        record_training(
            args, state, None, num_parameters=100, num_trained=10, s2ft=(selection.config, selection.channels)
        )

    for record in (farms, s2ft) if first == "farms" else (s2ft, farms):
        record()
    report = TrainReport.load(tmp_path / REPORT_NAME)
    assert report.method == "s2ft and farms-lr"
    assert (report.num_parameters, report.num_trained) == (100, 10)
    assert len(report.farms_lr.measurements) == 1
    # Another training in the same folder starts anew.
    state.global_step = 9
    farms()
    assert TrainReport.load(tmp_path / REPORT_NAME).method == "farms-lr"


def test_the_report_of_something_else_is_left_alone(tmp_path):
    state = trainer(tmp_path).state
    (tmp_path / REPORT_NAME).write_text("theirs")
    assert record_training(trainer(tmp_path).args, state, None, farms_lr=FAST) is None
    assert (tmp_path / REPORT_NAME).read_text() == "theirs"
    state.is_world_process_zero = False
    (tmp_path / REPORT_NAME).unlink()
    assert record_training(trainer(tmp_path).args, state, None, farms_lr=FAST) is None
    assert not (tmp_path / REPORT_NAME).exists()


def test_a_history_that_was_cut_off_is_read_to_there(farms, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(farms, copy)
    text = (copy / "farms_lr.jsonl").read_text()
    (copy / "farms_lr.jsonl").write_text(text[:-30])
    assert len(training_report(copy).farms_lr.measurements) == len(text.splitlines()) - 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("farms_lr.jsonl", '{"step": 1}\n', "must contain files in the format of the callbacks"),
        ("checkpoint-8/trainer_state.json", "{", r"trainer_state.json' must be JSON"),
        ("s2ft_config.json", '{"selection": {"budget": 7}}', "must contain files in the format"),
    ],
)
def test_broken_files_are_one_sentence(name, content, message, farms, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(farms, copy)
    (copy / name).write_text(content)
    with pytest.raises(DataError, match=message):
        training_report(copy)


def test_what_is_no_report_of_a_model_is_refused(tmp_path):
    with pytest.raises(DataError, match="folder must exist"):
        load_report(tmp_path / "none")
    with pytest.raises(DataError, match=r"folder must hold hf_farms_report.json, got .* without one"):
        load_report(tmp_path)
    (tmp_path / REPORT_NAME).write_text('{"schema_version": 3}')
    with pytest.raises(DataError, match=r"schema_version must be at most 2, got 3\. Upgrade hf-farms"):
        load_report(tmp_path)
    (tmp_path / REPORT_NAME).write_text('{"schema_version": 1, "kind": "training"}')
    with pytest.raises(DataError, match="report must be a TrainReport"):
        load_report(tmp_path)
    from hf_farms.demo import demo_model
    from hf_farms.spectra.analysis import analyze

    spectra: SpectralReport = analyze(str(demo_model()))
    spectra.save(tmp_path / REPORT_NAME)
    with pytest.raises(DataError, match="report must be a PruneReport"):
        load_report(tmp_path)

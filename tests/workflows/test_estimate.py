"""The line about the time of a prune, before it starts."""

from dataclasses import replace

import pytest
from hf_farms_cli.app import app
from typer.testing import CliRunner

from hf_farms import EvaluationConfig, PruneConfig
from hf_farms.config import CalibrationConfig
from hf_farms.errors import HfFarmsWarning
from hf_farms.loading.opening import load_model
from hf_farms.output.recipe import Recipe
from hf_farms.search import checking
from hf_farms.workflows import estimate, prune_estimate
from hf_farms.workflows.estimate import Speed, Work, estimate_prune
from hf_farms.workflows.prune import run_prune
from hf_farms.workflows.prune_plan import plan_prune
from hf_farms.workflows.texts import Calibration, EvaluationText, calibration_passages

# A token takes 1 ms in each of 10 blocks and 2 ms in the head, 10**9 multiply-adds of a spectrum a second.
SPEED = Speed(block=1e-3, head=2e-3, weight=1e-7, multiply_add=1e-9)
WORK = Work(blocks=10, weights=10**8, calibration=10_000, evaluation=5_000, multiply_adds=3e10, baseline=True)


def seconds(config=None, work=WORK):
    return {name: time for name, _, time in estimate_prune(config or PruneConfig(), work, SPEED).parts}


def test_each_part_is_its_passes():
    parts = seconds()
    assert parts["spectral measurement"] == pytest.approx(2 * 30)
    assert parts["perplexity"] == pytest.approx(3 * 5_000 * (10 + 2) * 1e-3)
    assert parts["pruning"] == pytest.approx(2 * (2 * 10_000 * 10e-3 + 10))
    # Magnitude runs no text through the model.
    assert seconds(PruneConfig(method="magnitude"))["pruning"] == pytest.approx(2 * 10)
    assert seconds(PruneConfig(allocation="owl"))["scoring"] == pytest.approx(2 * 10_000 * 10e-3)


def test_the_line_names_parts_and_what_the_baseline_costs():
    estimate = estimate_prune(PruneConfig(), WORK, SPEED)
    assert estimate.seconds == pytest.approx(60 + 180 + 420)
    assert estimate.sentence == (
        "about 11 min: 2 spectral measurements, 3 perplexities, 2 prunings; `baseline=False` saves 4 min"
    )
    alone = estimate_prune(PruneConfig(), replace(WORK, baseline=False), SPEED)
    assert estimate.seconds - alone.seconds == pytest.approx(estimate.baseline)
    assert alone.sentence == "about 6 min: 2 spectral measurements, 2 perplexities, 1 pruning"
    hours = estimate_prune(PruneConfig(), replace(WORK, calibration=10**6), SPEED)
    assert hours.sentence.startswith("about 11 h: ")


def test_short_work_is_not_announced():
    short = replace(WORK, calibration=100, evaluation=100, multiply_adds=1e9, weights=10**6)
    assert estimate_prune(PruneConfig(), short, SPEED).sentence is None


def test_finished_stages_and_other_processes_count():
    done = replace(WORK, finished=frozenset({"spectra", "dense", "uniform"}), left=0.5)
    assert seconds(work=done) == pytest.approx(
        {"spectral measurement": 30, "perplexity": 60, "pruning": 105, "distillation": 0}
    )
    assert estimate_prune(PruneConfig(), done, SPEED).baseline == 0
    assert seconds(work=replace(WORK, processes=2))["perplexity"] == pytest.approx(90)


def test_recoveries_and_searches_add_their_passes():
    plain, config = seconds(), PruneConfig(recover="submodule", recover_passes=2)
    forward = 10_000 * 10e-3
    assert seconds(config)["pruning"] == pytest.approx(plain["pruning"] + 2 * 10 * forward)
    trained = seconds(PruneConfig(recover="distill", recover_passes=2))
    assert trained["distillation"] == pytest.approx(2 * 2 * 3 * 10_000 * 14e-3)
    more = seconds(PruneConfig(recover="distill", recover_passes=2), replace(WORK, sequences=128))
    assert more["distillation"] == trained["distillation"]
    # Its blocks are fitted in 6 passes over 32 sequences, and in 2 over 128.
    assert trained["pruning"] - more["pruning"] == pytest.approx(2 * 4 * 3 * forward)
    assert seconds(PruneConfig(allocation="auto", minutes=2))["search"] == 120
    assert seconds(PruneConfig(allocation="auto"))["search"] > 120
    assert seconds(PruneConfig(refine="swaps"))["pruning"] > plain["pruning"]


def test_finalists_of_a_search_are_recovered_in_one_pass_over_32_sequences():
    def search(work=WORK, **options):
        return seconds(PruneConfig(allocation="auto", **options), work)["search"]

    forward = 10_000 * 10e-3
    # Two more plans are measured, one more is pruned, and each of four is recovered in seven forward passes.
    plan, pruned = 16_384 * (10 + 2 * 2) * 1e-3, 2 * forward + 10
    assert search(recover="submodule") == pytest.approx(search() + 2 * plan + pruned + 4 * 7 * forward)
    assert search(recover="submodule", recover_passes=9) == search(recover="submodule")
    assert search(recover="distill") == search(recover="submodule")
    more = replace(WORK, sequences=128)
    # A quarter of the sequences, also for the masks; the weights are as many.
    saved = 4 * (2 + 7) * forward * 3 / 4
    assert search(more, recover="submodule") == pytest.approx(search(recover="submodule") - saved)
    assert search(replace(WORK, processes=4)) == search()
    assert estimate.CHECK_SEQUENCES == checking.CHECK_SEQUENCES


def test_text_that_the_model_writes_takes_time_until_it_is_written():
    work = replace(WORK, written=1000)
    assert seconds(work=work)["text written by the model"] == pytest.approx(4 * 1000 * (10 + 2) * 1e-3)
    assert "text written by the model" not in seconds(work=replace(work, finished=frozenset({"text"})))
    assert "text written by the model" not in seconds()
    assert ", 1 text written by the model; " in estimate_prune(PruneConfig(), work, SPEED).sentence


def test_a_recovered_plan_is_compared_with_the_baseline_on_the_tokens_of_finalists():
    name, config = "comparison with uniform sparsity", PruneConfig(allocation="auto", recover="submodule")
    one = 16_384 * (10 + 2) * 1e-3
    assert seconds(config)[name] == pytest.approx(2 * one)
    compared, alone = (estimate_prune(config, replace(WORK, baseline=given), SPEED) for given in (True, False))
    assert compared.seconds - alone.seconds == pytest.approx(compared.baseline)
    assert seconds(config, replace(WORK, finished=frozenset({"uniform"})))[name] == pytest.approx(one)
    for other, work in (
        (PruneConfig(allocation="auto"), WORK),
        (PruneConfig(allocation="farms", recover="submodule"), WORK),
        (config, replace(WORK, baseline=False)),
    ):
        assert name not in seconds(other, work)


def planned(tmp_path, method="wanda", *, recover="none", recover_passes=None, num_sequences=4, **calibration):
    recipe = Recipe(
        model="demo",
        revision=None,
        dtype="auto",
        prune=PruneConfig(method=method, recover=recover, recover_passes=recover_passes),
        calibration=CalibrationConfig(num_sequences=num_sequences, **calibration),
        evaluation=EvaluationConfig(max_windows=2),
    )
    return plan_prune(recipe, tmp_path / "out")


def test_a_run_tells_it_once_before_its_first_step(tmp_path, monkeypatch):
    works, order = [], []

    def hours(config, work, speed):
        works.append((work, speed))
        return estimate_prune(config, replace(work, evaluation=10**6), replace(speed, block=1e-3))

    monkeypatch.setattr(prune_estimate, "estimate_prune", hours)
    run_prune(
        planned(tmp_path), progress=lambda stage, *_: order.append(stage), on_estimate=lambda line: order.append(line)
    )
    assert order[0].startswith("about ")
    assert sum(text.startswith("about ") for text in order) == 1
    ((work, speed),) = works
    assert (work.blocks, work.calibration, work.evaluation, work.baseline) == (8, 4 * 256, 2 * 256, True)
    assert work.weights == 811_008
    assert work.sequences == 4
    assert 0 < speed.block < 1
    assert 0 < speed.head < 1


def line(plan, monkeypatch, stream=False):
    """The line of a plan whose model is slow."""
    monkeypatch.setattr(prune_estimate, "measure_speed", lambda *_: replace(SPEED, block=0.05))
    model = load_model(plan.model, stream=stream)
    calibration = Calibration(plan.recipe, model, calibration_passages(plan.recipe, model))
    return prune_estimate.estimated_time(
        plan, model.source, calibration=calibration, evaluation=EvaluationText(EVALUATION, model)
    )


EVALUATION = EvaluationConfig(max_windows=2)


def test_written_tokens_are_counted_until_the_file_is_there(tmp_path, monkeypatch):
    plan = planned(tmp_path, num_continuations=12)
    assert "1 text written by the model" in line(plan, monkeypatch)
    # All blocks of a streamed model are read for every token: that has a warning, and no estimate.
    with pytest.warns(HfFarmsWarning, match="all of them are read for every token"):
        assert "written by the model" not in line(plan, monkeypatch, stream=True)
    plan.output.state.mkdir(parents=True)
    (plan.output.state / "calibration.safetensors").touch()
    assert "written by the model" not in line(plan, monkeypatch)


def test_the_command_names_its_option_and_is_silent_for_short_work(tmp_path, monkeypatch):
    monkeypatch.setattr(prune_estimate, "measure_speed", lambda *_: replace(SPEED, block=0.05))
    options = ["--method", "magnitude", "--evaluation-windows", "2", "--format", "human"]
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["prune", "demo", *options, "-o", "one"])
    assert "Estimate: about 10 min: 2 spectral measurements, 3 perplexities, 2 prunings; --no-baseline saves 3 min" in (
        " ".join(done.stderr.split())
    )
    quiet = CliRunner().invoke(app, ["prune", "demo", *options[:-2], "-q", "-o", "two"])
    assert quiet.exit_code == 0
    assert "Estimate" not in quiet.stderr
    monkeypatch.setattr(prune_estimate, "measure_speed", lambda *_: replace(SPEED, block=1e-6, multiply_add=1e-12))
    short = CliRunner().invoke(app, ["prune", "demo", *options, "-o", "three"])
    assert "Estimate" not in short.stderr

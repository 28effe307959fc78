"""Continuations that the dense model writes by default for a recovery, and the passes over them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hf_farms_cli.app import app
from models import tiny
from safetensors.torch import load_file
from typer.testing import CliRunner

import hf_farms.demo
from hf_farms import CalibrationConfig, EvaluationConfig, LoadOptions, PruneConfig, SelectionConfig, prune_checkpoint
from hf_farms.errors import HfFarmsWarning, NoEffectWarning, OutputError
from hf_farms.loading.names import ModelRef
from hf_farms.loading.opening import load_model
from hf_farms.output import fingerprint
from hf_farms.output.recipe import Recipe
from hf_farms.reports import SearchRecord
from hf_farms.workflows import selection
from hf_farms.workflows.default_text import CONTINUED, STREAMED, decide_text
from hf_farms.workflows.prune_plan import plan_prune

CONFIG = PruneConfig(allocation="uniform", method="magnitude", recover="submodule")
TEXT = CalibrationConfig(num_sequences=2, sequence_length=32)
OPTIONS = {"evaluation": EvaluationConfig(source=None), "selection": SelectionConfig(sequence_length=128)}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr("hf_farms.data.selection.ACCEPTANCE_TOKENS", 256)


def numbers(folder):
    recipe = Recipe.load(folder / "recipe.yaml")
    return recipe.calibration.num_continuations, recipe.prune.recover_passes


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(one, other):
    one, other = weights(one), weights(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_they_are_written_and_the_recipe_has_their_number(short_demo, tmp_path):
    report = prune_checkpoint(short_demo, tmp_path / "default", config=CONFIG, calibration=TEXT, **OPTIONS)
    assert numbers(tmp_path / "default") == (6, 6)
    assert report.calibration.num_sequences == 8
    assert report.calibration.config.num_continuations == 6
    assert report.config.recover_passes == 6
    assert STREAMED not in report.notes
    card = (tmp_path / "default" / "README.md").read_text()
    assert (
        "8 sequences, 256 tokens of `speeches`, seed 0; 6 of them are continuations that the dense model wrote" in card
    )
    # The same default is the same run, whatever the model turned out to do.
    with pytest.warns(NoEffectWarning, match="finished already: nothing was pruned"):
        prune_checkpoint(short_demo, tmp_path / "default", config=CONFIG, calibration=TEXT, **OPTIONS)
    recipe = Recipe.load(tmp_path / "default" / "recipe.yaml")
    prune_checkpoint(short_demo, tmp_path / "again", config=recipe.prune, calibration=recipe.calibration, **OPTIONS)
    assert same(tmp_path / "default", tmp_path / "again")


@pytest.mark.filterwarnings("ignore:calibration should have at least 64:hf_farms.errors.HfFarmsWarning")
def test_a_training_of_the_whole_model_gets_them_too(short_demo, tmp_path):
    config = replace(CONFIG, recover="distill")
    report = prune_checkpoint(short_demo, tmp_path / "out", config=config, calibration=TEXT, **OPTIONS)
    assert numbers(tmp_path / "out") == (6, 2)
    assert report.distillation.steps == 2 * 8


def interrupt(stage, done, total):
    if stage.startswith("recover") and done == 1:
        raise KeyboardInterrupt("as Ctrl-C does")


def begin(model, folder, **options):
    with pytest.raises(KeyboardInterrupt, match="as Ctrl-C does"):
        prune_checkpoint(model, folder, progress=interrupt, **{**OPTIONS, **options})


def test_a_streamed_model_writes_none_and_a_run_goes_on_as_it_began(short_demo, tmp_path):
    options = {"config": CONFIG, "calibration": TEXT}
    begin(short_demo, tmp_path / "out", load=LoadOptions(stream=True), **options)
    # Now it fits into memory.
    report = prune_checkpoint(short_demo, tmp_path / "out", load=LoadOptions(stream=False), **options, **OPTIONS)
    assert numbers(tmp_path / "out") == (0, 6)
    assert CONTINUED in report.notes
    assert STREAMED not in report.notes
    whole = prune_checkpoint(short_demo, tmp_path / "whole", load=LoadOptions(stream=True), **options, **OPTIONS)
    assert STREAMED in whole.notes
    assert CONTINUED not in whole.notes
    assert same(tmp_path / "out", tmp_path / "whole")


def test_a_run_that_wrote_some_goes_on_with_them_where_it_must_be_streamed(short_demo, tmp_path):
    options = {"config": CONFIG, "calibration": TEXT}
    begin(short_demo, tmp_path / "out", **options)
    # Without a warning: nothing is written any more.
    report = prune_checkpoint(short_demo, tmp_path / "out", load=LoadOptions(stream=True), **options, **OPTIONS)
    assert numbers(tmp_path / "out") == (6, 6)
    assert STREAMED not in report.notes


def test_work_on_another_text_is_begun_again_with_continuations(short_demo, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text((Path(hf_farms.demo.__file__).parent / "text" / "calibration.txt").read_text())
    options = {"config": CONFIG, "calibration": replace(TEXT, source=str(text))}
    begin(short_demo, tmp_path / "out", load=LoadOptions(stream=True), **options)
    text.write_text(text.read_text()[1000:])
    # The difference that is named is the only one.
    with pytest.raises(OutputError, match=r"which was begun otherwise \(tokens.calibration: [^;]*\)"):
        prune_checkpoint(short_demo, tmp_path / "out", load=LoadOptions(stream=False), **options, **OPTIONS)
    load = LoadOptions(stream=False)
    report = prune_checkpoint(short_demo, tmp_path / "out", load=load, overwrite=True, **options, **OPTIONS)
    assert numbers(tmp_path / "out") == (6, 6)
    assert CONTINUED not in report.notes


def test_unfinished_work_on_the_same_text_is_continued_where_it_may_be_replaced(short_demo, tmp_path):
    options = {"config": CONFIG, "calibration": TEXT}
    begin(short_demo, tmp_path / "out", load=LoadOptions(stream=True), **options)
    load = LoadOptions(stream=False)
    prune_checkpoint(short_demo, tmp_path / "out", load=load, overwrite=True, **options, **OPTIONS)
    assert numbers(tmp_path / "out") == (0, 6)


def test_text_that_was_begun_and_not_written_is_not_written_by_a_streamed_model(short_demo, tmp_path):
    def stop(stage, done, total):
        if stage.startswith("Writing"):
            raise KeyboardInterrupt("as Ctrl-C does")

    options = {"config": replace(CONFIG, allocation="farms"), "calibration": TEXT}
    with pytest.raises(KeyboardInterrupt, match="as Ctrl-C does"):
        prune_checkpoint(short_demo, tmp_path / "out", progress=stop, **options, **OPTIONS)
    load = LoadOptions(stream=True)
    with pytest.raises(OutputError, match=r"begun otherwise \(calibration.num_continuations: 0, previously 6\)"):
        prune_checkpoint(short_demo, tmp_path / "out", load=load, **options, **OPTIONS)
    prune_checkpoint(short_demo, tmp_path / "out", load=load, overwrite=True, **options, **OPTIONS)
    assert numbers(tmp_path / "out") == (0, 6)


def test_text_written_for_other_work_does_not_count(short_demo, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text((Path(hf_farms.demo.__file__).parent / "text" / "calibration.txt").read_text())
    options = {"config": CONFIG, "calibration": replace(TEXT, source=str(text), num_continuations=1)}
    begin(short_demo, tmp_path / "out", **options)
    text.write_text(text.read_text()[1000:])
    load = LoadOptions(stream=True)
    with pytest.warns(HfFarmsWarning, match="the model writes calibration text while its blocks are on disk"):
        prune_checkpoint(short_demo, tmp_path / "out", load=load, overwrite=True, **options, **OPTIONS)


def test_work_with_more_in_its_fingerprint_is_not_that_which_is_continued(short_demo, tmp_path):
    options = {"config": CONFIG, "calibration": TEXT}
    begin(short_demo, tmp_path / "out", load=LoadOptions(stream=True), **options)
    (file,) = (tmp_path / "out.partial").rglob("fingerprint.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"weights.gone.safetensors": "0"}))
    load = LoadOptions(stream=False)
    prune_checkpoint(short_demo, tmp_path / "out", load=load, overwrite=True, **options, **OPTIONS)
    assert numbers(tmp_path / "out") == (6, 6)


def test_weights_are_read_once_for_the_fingerprint(short_demo, tmp_path, monkeypatch):
    options = {"config": CONFIG, "calibration": TEXT}
    begin(short_demo, tmp_path / "out", **options)
    read = []
    real = fingerprint.hash_of_file
    monkeypatch.setattr(fingerprint, "hash_of_file", lambda path: read.append(path.name) or real(path))
    prune_checkpoint(short_demo, tmp_path / "out", overwrite=True, **options, **OPTIONS)
    assert read == ["model.safetensors"]


def test_a_dry_run_shows_the_numbers_of_work_that_goes_on(short_demo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["prune", short_demo, "--method", "magnitude", "--recover", "submodule"]
    command += ["--calibration-samples", "2", "--calibration-length", "32", "--evaluation", "none", "-o", "out"]
    command += ["--select-length", "128"]

    def shown(*options):
        done = CliRunner(env={"COLUMNS": "300"}).invoke(app, [*command, *options, "--dry-run"])
        assert done.exit_code == 0, done.output
        (line,) = (line for line in done.stdout.splitlines() if "num_continuations" in line)
        return line.partition("num_continuations: ")[2]

    unknown = "6 (where the model is streamed, or cannot generate text: 0)"
    assert [shown(), shown("--stream")] == [unknown, "0"]
    begin(short_demo, tmp_path / "out", config=CONFIG, calibration=TEXT, load=LoadOptions(stream=True))
    # The texts, which decide where it may be begun again, are not read.
    assert [shown(), shown("--stream"), shown("--overwrite")] == ["0", "0", unknown]
    prune_checkpoint(short_demo, tmp_path / "out", config=CONFIG, calibration=TEXT, **OPTIONS)
    assert [shown(), shown("--stream")] == ["0", "0"]
    shutil.rmtree(tmp_path / "out")
    begin(short_demo, tmp_path / "out", config=CONFIG, calibration=TEXT)
    assert [shown(), shown("--stream")] == ["6", "6"]


def test_work_of_other_settings_decides_nothing(short_demo, tmp_path):
    begin(short_demo, tmp_path / "out", config=CONFIG, calibration=replace(TEXT, num_continuations=0))
    begun = Recipe(model=short_demo, revision=None, dtype="auto", prune=CONFIG, calibration=TEXT, **OPTIONS)
    loaded = load_model(short_demo)
    for recipe, expected in (
        (begun, 0),
        (replace(begun, prune=replace(CONFIG, sparsity=0.4)), 6),
        (replace(begun, calibration=replace(TEXT, seed=1)), 6),
    ):
        plan = plan_prune(recipe, tmp_path / "out")
        plan, _ = decide_text(plan, loaded, lambda recipe, output=plan.output: output.was_begun_with(recipe.flat()))
        assert plan.recipe.calibration.num_continuations == expected


@pytest.mark.filterwarnings("ignore:.* lacks .* of the head")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("headless", [False, True])
def test_a_model_without_its_head_writes_none(tmp_path, headless, stream):
    model = tiny("llama", vocab_size=2048, tie_word_embeddings=False)
    (model.model if headless else model).save_pretrained(tmp_path / "model")
    for path in Path(hf_farms.demo.__file__).parent.glob("model/tokenizer*"):
        shutil.copy(path, tmp_path / "model")
    recipe = Recipe(
        model=str(tmp_path / "model"), revision=None, dtype="auto", prune=CONFIG, calibration=TEXT, **OPTIONS
    )
    loaded = load_model(ModelRef.parse(recipe.model, None), head=False, stream=stream)
    plan, notes = decide_text(plan_prune(recipe, tmp_path / "out"), loaded, lambda _: False)
    assert notes == ((STREAMED,) if stream and not headless else ())
    assert plan.recipe.calibration.num_continuations == (0 if headless or stream else 6)
    _, notes = decide_text(plan_prune(recipe, tmp_path / "out"), loaded, lambda recipe: recipe == plan.recipe)
    assert notes == ((STREAMED,) if stream and not headless else ())


def test_a_search_uses_the_passages_alone(short_demo, tmp_path, monkeypatch):
    seen = []

    def search(source, config, calibration, *_, **__):
        seen.append(torch.cat(list(calibration)).shape)
        return SearchRecord(winner="uniform", sparsities=(0.5,) * 2)

    monkeypatch.setattr(selection, "search_sparsities", search)
    config = PruneConfig(allocation="auto", recover="submodule", recover_passes=1)
    report = prune_checkpoint(short_demo, tmp_path / "out", config=config, calibration=TEXT, **OPTIONS)
    assert seen == [(2, 32)]
    assert report.calibration.num_sequences == 8


def test_blocks_that_look_less_trained_are_named_on_the_card(tmp_path):
    text = replace(TEXT, num_continuations=0)
    config = replace(CONFIG, recover_passes=1)
    report = prune_checkpoint("demo", tmp_path / "out", config=config, calibration=text, **OPTIONS)
    (note,) = [note for note in report.notes if "may be less trained than the others" in note]
    assert note.startswith("Blocks model.layers.3, model.layers.5 may be")
    assert "model.layers.5 may be less trained than the others" in (tmp_path / "out" / "README.md").read_text()

"""`prune_checkpoint` with an allocation that searches: selection text, interruption, report, recipe, card."""

import json
from dataclasses import replace

import pytest

from hf_farms import CalibrationConfig, EvaluationConfig, LoadOptions, PruneConfig, SelectionConfig, prune_checkpoint
from hf_farms.data.texts import read_text
from hf_farms.errors import DataError, NoEffectWarning
from hf_farms.output.recipe import Recipe
from hf_farms.reports import PruneReport
from hf_farms.search import final_check, steps
from hf_farms.workflows.prune_plan import plan_prune
from hf_farms.workflows.selection import OTHER_KIND

CONFIG = PruneConfig(allocation="auto")
CALIBRATION = CalibrationConfig(num_sequences=2, sequence_length=64)
NONE = EvaluationConfig(source=None)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    sizes = {"SCREEN_TOKENS": 128, "REFINE_TOKENS": 128, "TABLE_TOKENS": 64, "MOVES": 6}
    for name, value in sizes.items():
        monkeypatch.setattr(steps, name, value)
    monkeypatch.setattr(final_check, "CHECK_TOKENS", 64)


@pytest.mark.parametrize("stream", [False, True])
def test_an_interrupted_search_continues_and_the_result_says_what_won(tmp_path, monkeypatch, stream):
    out, stages = tmp_path / "out", []
    options = {
        "config": CONFIG,
        "calibration": CALIBRATION,
        "evaluation": NONE,
        "selection": SelectionConfig(sequence_length=64),
        "load": LoadOptions(stream=stream),
    }

    def interrupt(stage, done, total):
        stages.append(stage)
        if "move" in stage:
            raise KeyboardInterrupt("as Ctrl-C does")

    with pytest.raises(KeyboardInterrupt, match="as Ctrl-C does"):
        # Another limit is no other search.
        prune_checkpoint("demo", out, progress=interrupt, **options | {"config": replace(CONFIG, minutes=600)})
    (trials,) = (tmp_path / "out.partial").rglob("trials.json")
    kept = json.loads(trials.read_text())
    assert any(trial["name"].startswith("move") for trial in kept["trials"])
    measured = steps.plan_losses
    plans = []
    monkeypatch.setattr(steps, "plan_losses", lambda *args: plans.extend(args[2]) or measured(*args))
    report = prune_checkpoint("demo", out, **options)
    # Only the finalists are left.
    assert len(plans) <= 5
    search = report.search
    assert {trial.name for trial in search.trials} == {trial["name"] for trial in kept["trials"]}
    assert search.selection == SelectionConfig(sequence_length=64)
    assert [block.target for block in report.blocks] == pytest.approx(search.sparsities)
    assert report.sparsity == pytest.approx(0.5, abs=1e-5)
    assert (search.best.pruned is None) == stream
    assert PruneReport.load(out / "hf_farms_report.json").search == search
    assert Recipe.load(out / "recipe.yaml").selection == SelectionConfig(sequence_length=64)
    card = (out / "README.md").read_text()
    assert f"Best of {len(search.trials)} plans: {search.winner}, KL to the dense model" in card
    # Streamed models are not pruned before the choice.
    assert ("with sequential pruning over 3 plans: " in card) is not stream
    assert ("and of a few after they were pruned block by block" in card) is not stream
    unchecked = "Plans were not pruned block by block before the choice, as the model is not in memory."
    assert (unchecked in report.notes, f"- {unchecked}" in card) == (stream, stream)
    assert "| plan | KL, screened | KL, refined | KL, pruned |" in card
    assert "Selection text: `speeches`, neither calibration nor evaluation text." in card
    assert "positions compare badly" not in card
    assert not list(tmp_path.rglob("*.codes"))


def recipe(**changes):
    texts = {"prune": CONFIG, "calibration": CALIBRATION, "evaluation": NONE}
    return Recipe(model="demo", revision=None, dtype="auto", **{**texts, **changes})


def test_a_selection_text_is_checked_before_anything_is_loaded(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("word " * 5000)
    same = recipe(calibration=CalibrationConfig(source=str(text)), selection=SelectionConfig(source=str(text)))
    with pytest.raises(DataError, match="selection text must not be the calibration text"):
        plan_prune(same, tmp_path / "out")
    with pytest.raises(DataError, match=r"^selection text must be an existing file, got"):
        plan_prune(recipe(selection=SelectionConfig(source=str(tmp_path / "none.txt"))), tmp_path / "out")
    recovering = PruneConfig(recover="submodule")
    with pytest.raises(DataError, match="selection text must not be the calibration text"):
        plan_prune(replace(same, prune=recovering), tmp_path / "out")
    sentence = "it applies to allocation 'sensitivity' or 'auto' and to recover 'submodule'"
    with pytest.warns(NoEffectWarning, match=f"`selection.source` has no effect: {sentence}"):
        plan_prune(
            recipe(prune=PruneConfig(), selection=SelectionConfig(source=str(text))),
            tmp_path / "out",
        )


def test_a_search_that_the_time_ended_goes_on_with_more_time_unless_blocks_were_pruned_by_it(tmp_path, short_demo):
    options = {"calibration": CALIBRATION, "evaluation": NONE, "selection": SelectionConfig(sequence_length=64)}
    short, long = replace(CONFIG, minutes=1e-6), replace(CONFIG, minutes=60)

    def interrupted(out, config, blocks):
        def interrupt(stage, done, total):
            if stage == "prune" and done == blocks:
                raise KeyboardInterrupt("as Ctrl-C does")

        with pytest.raises(KeyboardInterrupt, match="as Ctrl-C does"):
            prune_checkpoint(short_demo, out, config=config, progress=interrupt, **options)

    interrupted(tmp_path / "none", short, 0)
    assert prune_checkpoint(short_demo, tmp_path / "none", config=long, **options).search.complete
    interrupted(tmp_path / "one", short, 1)
    report = prune_checkpoint(short_demo, tmp_path / "one", config=long, **options)
    assert not report.search.complete
    assert len(report.search.trials) < 10


@pytest.mark.parametrize("name", ["calibration", "evaluation"])
def test_a_selection_text_that_holds_another_text_is_refused_before_anything_is_measured(tmp_path, name):
    other = str(tmp_path / "other.txt")
    (tmp_path / "other.txt").write_text(passage := read_text("speeches")[:3000], encoding="utf-8")
    (tmp_path / "select.txt").write_text(f"Title\n{passage}", encoding="utf-8")
    texts = {
        "calibration": CalibrationConfig(num_sequences=2, sequence_length=200),
        "evaluation": EvaluationConfig(split="test", context_length=200),
    }
    stages = []
    with pytest.raises(DataError, match=f"must not be the {name} text, got a sequence that is in both"):
        prune_checkpoint(
            "demo",
            tmp_path / "out",
            config=PruneConfig(recover="submodule"),
            **texts | {name: replace(texts[name], source=other)},
            selection=SelectionConfig(source=str(tmp_path / "select.txt"), sequence_length=64),
            progress=lambda stage, *_: stages.append(stage),
        )
    assert not stages
    assert {path.name for path in tmp_path.iterdir()} == {"other.txt", "select.txt"}


def test_a_default_selection_text_beside_a_calibration_text_of_the_user_is_noted(tmp_path, short_demo):
    (tmp_path / "fit.txt").write_text(read_text("speeches")[:3000], encoding="utf-8")
    report = prune_checkpoint(
        short_demo,
        tmp_path / "out",
        config=PruneConfig(method="magnitude", recover="submodule", recover_passes=1),
        calibration=replace(CALIBRATION, source=str(tmp_path / "fit.txt"), num_continuations=0),
        evaluation=NONE,
    )
    assert OTHER_KIND in report.notes


def test_a_recipe_names_a_selection_text_only_where_one_is_used(tmp_path):
    plain = recipe(prune=PruneConfig())
    plain.save(tmp_path / "recipe.yaml")
    assert "selection" not in (tmp_path / "recipe.yaml").read_text()
    assert Recipe.load(tmp_path / "recipe.yaml") == plain
    searching = recipe()
    assert searching.selection == SelectionConfig()
    assert "selection.source: speeches" in searching.describe()
    assert searching.differences(plain)
    assert searching.texts()[2] == "speeches"
    assert recipe(prune=PruneConfig(recover="submodule")).selection == SelectionConfig()


def test_a_recovery_is_accepted_on_the_selection_text(tmp_path, short_demo):
    config = PruneConfig(allocation="ramp", method="magnitude", recover="submodule", recover_passes=1)
    selection = SelectionConfig(sequence_length=64)
    report = prune_checkpoint(
        short_demo,
        tmp_path / "out",
        config=config,
        calibration=CALIBRATION,
        selection=selection,
        evaluation=EvaluationConfig(max_windows=1),
    )
    assert report.acceptance.config == selection
    assert report.acceptance.num_tokens == 4096
    assert OTHER_KIND not in report.notes
    assert PruneReport.load(tmp_path / "out/hf_farms_report.json") == report.published()
    assert Recipe.load(tmp_path / "out/recipe.yaml").selection == selection
    card = (tmp_path / "out/README.md").read_text()
    assert (
        "(median) on 4,096 tokens of the selection text that nothing was fitted to. Selection text: `speeches`" in card
    )
    assert report.perplexity.uniform is not None

"""A search before a recovery: the result is its plan or uniform sparsity, whichever is better after the recovery."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hf_farms import CalibrationConfig, EvaluationConfig, LoadOptions, PruneConfig, SelectionConfig, prune_checkpoint
from hf_farms.data.selection import selection_sequences, split_selection
from hf_farms.errors import HfFarmsWarning, ModelError
from hf_farms.loading.names import ModelRef
from hf_farms.loading.opening import load_model
from hf_farms.metrics.nll import TextNll, text_nll
from hf_farms.output.existing_results import STATE
from hf_farms.reports import SearchRecord
from hf_farms.workflows import prune_result, recovered_choice, selection
from hf_farms.workflows.prune_stages import NOT_COMPARED
from hf_farms.workflows.recovered_choice import Comparison

CONFIG = PruneConfig(allocation="auto", recover="submodule", recover_passes=1)
OPTIONS = {
    "calibration": CalibrationConfig(num_sequences=2, sequence_length=64),
    "evaluation": EvaluationConfig(max_windows=2),
    "selection": SelectionConfig(sequence_length=256),
}
# Better and worse than uniform sparsity for the first two blocks of the demo.
GOOD, BAD = (0.3, 0.7), (0.7, 0.3)
BEGIN = "With the whole recovery, the NLL of "


@pytest.fixture(autouse=True)
def found(monkeypatch):
    """What a search found: it has tests of its own, and would take a minute."""
    record = {"sparsities": GOOD}
    monkeypatch.setattr(selection, "search_sparsities", lambda *_, **__: SearchRecord(winner="move 1", **record))
    monkeypatch.setattr(recovered_choice, "FINALIST_TOKENS", 1024)
    monkeypatch.setattr("hf_farms.data.selection.ACCEPTANCE_TOKENS", 512)
    return record


def notes(report):
    return [note for note in report.notes if note.startswith(BEGIN)]


def measured(folder, short_demo):
    """The NLL of the first four sequences, measured on the finished model."""
    model = load_model(ModelRef.parse(short_demo, None))
    batches, _ = selection_sequences(OPTIONS["selection"], model=model.model, tokenizer=model.tokenizer)
    rows = torch.cat([row["input_ids"] for row in split_selection(batches).acceptance])[:4]
    pruned = AutoModelForCausalLM.from_pretrained(folder)
    assert pruned.config.vocab_size == model.model.config.vocab_size
    return text_nll(pruned, rows.flatten(), context_length=256)


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_better_plan_is_the_result_and_a_run_that_was_killed_knows_the_baseline(tmp_path, short_demo):
    def interrupt(stage, done, total):
        if stage == "Measuring spectra again":
            raise KeyboardInterrupt("as Ctrl-C does")

    with pytest.raises(KeyboardInterrupt, match="as Ctrl-C does"):
        prune_checkpoint(short_demo, tmp_path / "auto", config=CONFIG, progress=interrupt, **OPTIONS)
    report = prune_checkpoint(short_demo, tmp_path / "auto", config=CONFIG, **OPTIONS)
    prune_checkpoint(short_demo, tmp_path / "uniform", config=replace(CONFIG, allocation="uniform"), **OPTIONS)
    expected = Comparison(measured(tmp_path / "auto", short_demo), measured(tmp_path / "uniform", short_demo))
    assert not expected.uniform_is_better
    assert expected.sentence().startswith(
        f"{BEGIN}1,020 tokens of the selection text, which the search did not see, is "
    )
    assert notes(report) == [expected.sentence()]
    assert report.search.taken is None
    assert [block.target for block in report.blocks] == pytest.approx(GOOD)
    assert expected.sentence() in (tmp_path / "auto" / "README.md").read_text()


@pytest.mark.parametrize("stream", [False, True])
def test_uniform_sparsity_is_the_result_where_it_is_better_also_if_the_run_is_killed_in_between(
    tmp_path, monkeypatch, found, stream, short_demo
):
    found["sparsities"] = BAD
    rename, moved = Path.replace, []

    def killed(path, target):
        kept = tmp_path / "auto.partial" / STATE / "uniform"
        if path.is_relative_to(kept) and not Path(target).is_relative_to(kept):
            moved.append(path.name)
            if len(moved) == 4:
                raise KeyboardInterrupt("as Ctrl-C does")
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", killed)
    options = {**OPTIONS, "config": CONFIG, "load": LoadOptions(stream=stream)}
    with pytest.raises(KeyboardInterrupt, match="as Ctrl-C does"):
        prune_checkpoint(short_demo, tmp_path / "auto", **options)
    report = prune_checkpoint(short_demo, tmp_path / "auto", **options)
    uniform = prune_checkpoint(
        short_demo, tmp_path / "uniform", **{**options, "config": replace(CONFIG, allocation="uniform")}
    )
    assert same(weights(tmp_path / "auto"), weights(tmp_path / "uniform"))
    assert report.blocks == uniform.blocks
    assert report.after.blocks == uniform.after.blocks
    assert report.perplexity.pruned == report.perplexity.uniform == uniform.perplexity.pruned
    (note,) = notes(report)
    end = (
        r"\): the result has uniform sparsity\. With the plan of the search the perplexity of the evaluation text was "
    )
    plan = re.search(end + r"([0-9.]+)\.$", note)
    assert float(plan[1]) > report.perplexity.pruned
    assert (report.search.winner, report.search.taken) == ("move 1", "uniform")
    card = (tmp_path / "auto" / "README.md").read_text()
    assert note in card
    assert "Plan: move 1. The result has uniform sparsity instead: see the notes." in card
    assert not [path for path in (tmp_path / "auto").rglob("*") if "uniform" in path.name]


def test_blocks_that_an_earlier_version_deleted_are_advised(tmp_path, monkeypatch, found, short_demo):
    found["sparsities"] = BAD
    monkeypatch.setattr(recovered_choice.RecoveredChoice, "keeps_uniform", lambda *_: False)
    report = prune_checkpoint(short_demo, tmp_path / "auto", config=CONFIG, **OPTIONS)
    assert len(notes(report)) == 1
    assert report.search.taken is None
    assert [block.target for block in report.blocks] == pytest.approx(BAD)


def test_training_leaves_no_blocks_to_take(tmp_path, found, short_demo):
    found["sparsities"] = BAD
    config = replace(CONFIG, recover="distill")
    with pytest.warns(HfFarmsWarning):
        report = prune_checkpoint(short_demo, tmp_path / "auto", config=config, **OPTIONS)
    # Four sequences are too few for advice.
    (note,) = notes(report)
    assert re.search(r"with uniform sparsity \(\+[0-9.]+ ± [0-9.]+\)\.$", note)
    assert report.search.taken is None


def test_a_run_that_goes_on_without_a_baseline_knows_that_of_before(tmp_path, found, short_demo):
    found["sparsities"] = BAD

    def interrupt(stage, done, total):
        if stage == "Merging shards":
            raise KeyboardInterrupt("as Ctrl-C does")

    with pytest.raises(KeyboardInterrupt, match="as Ctrl-C does"):
        prune_checkpoint(short_demo, tmp_path / "auto", config=CONFIG, progress=interrupt, **OPTIONS)
    (tmp_path / "auto.partial" / STATE / "report.json").unlink()
    report = prune_checkpoint(short_demo, tmp_path / "auto", config=CONFIG, baseline=False, **OPTIONS)
    assert report.search.taken == "uniform"
    assert report.perplexity.pruned is not None
    assert report.perplexity.uniform is None


def test_uniform_sparsity_is_the_result_where_the_plan_has_no_finite_perplexity(tmp_path, monkeypatch, short_demo):
    monkeypatch.setattr(prune_result.ResultStage, "_nll", lambda stage: (None, "The model is broken."))
    # No warning: the result has a perplexity.
    report = prune_checkpoint(short_demo, tmp_path / "auto", config=CONFIG, **OPTIONS)
    reason = "With the plan of the search the perplexity is not finite: the result has uniform sparsity."
    assert reason in report.notes
    assert "The perplexity of the pruned model is not finite." not in report.notes
    assert report.perplexity.pruned == report.perplexity.uniform
    assert {block.target for block in report.blocks} == {0.5}


def test_the_disk_must_have_space_for_both(tmp_path, monkeypatch, short_demo):
    needed = []
    monkeypatch.setattr("hf_farms.output.folder.OutputFolder._check_space", lambda folder, size: needed.append(size))

    def stop(stage, done, total):
        raise KeyboardInterrupt("nothing else is of interest")

    for allocation in ("auto", "farms"):
        with pytest.raises(KeyboardInterrupt, match="nothing else is of interest"):
            prune_checkpoint(
                short_demo, tmp_path / "a", config=replace(CONFIG, allocation=allocation), progress=stop, **OPTIONS
            )
    model = load_model(ModelRef.parse(short_demo, None)).model
    assert needed[1] - needed[3] == sum(parameter.nbytes for parameter in model.parameters())


def test_nothing_is_compared_without_a_baseline_or_a_recovery(tmp_path, short_demo):
    alone = prune_checkpoint(short_demo, tmp_path / "alone", config=CONFIG, baseline=False, **OPTIONS)
    assert NOT_COMPARED in alone.notes
    plain = replace(CONFIG, recover="none", recover_passes=None)
    assert notes(alone) == notes(prune_checkpoint(short_demo, tmp_path / "plain", config=plain, **OPTIONS)) == []


def nll(*windows):
    return TextNll(windows, context_length=64, num_tokens=63 * len(windows))


def test_the_sentence_tells_what_is_better_and_what_is_taken():
    base, worse = nll(*[3.0, 3.2, 3.4] * 3), nll(*[3.1, 3.3, 3.51] * 3)
    begin = (
        "With the whole recovery, the NLL of 567 tokens of the selection text, which the search did not see, is 3.303 "
        "with its plan and 3.200 with uniform sparsity (+0.103 ± 0.002)"
    )
    compared = Comparison(worse, base)
    assert compared.uniform_is_better
    assert compared.sentence() == f"{begin}: uniform sparsity was better on this text, try `allocation='uniform'`."
    assert compared.sentence(taken=True) == f"{begin}: the result has uniform sparsity."
    other = Comparison(base, worse)
    assert not other.uniform_is_better
    assert other.sentence().endswith(" with uniform sparsity (-0.103 ± 0.002).")
    assert Comparison(nll(3.0), nll(3.1)).sentence().endswith(" and 3.100 with uniform sparsity.")
    assert not Comparison(base, base).uniform_is_better
    # Within two errors, or of too few sequences to rely on, nothing is advised.
    near = Comparison(nll(*[3.1, 3.1, 3.51] * 3), nll(*[3.0, 3.3, 3.4] * 3))
    assert near.uniform_is_better
    assert near.sentence().endswith(" with uniform sparsity (+0.003 ± 0.051).")
    assert Comparison(nll(3.1, 3.3, 3.51), nll(3.0, 3.2, 3.4)).sentence().endswith("(+0.103 ± 0.003).")


def test_a_comparison_that_fails_keeps_the_baseline(tmp_path, monkeypatch, short_demo):
    def fails(*_, **__):
        raise ModelError("the model predicts NaN.")

    monkeypatch.setattr(recovered_choice, "text_nll", fails)
    with pytest.warns(
        HfFarmsWarning, match="^The result is not compared with uniform sparsity: the model predicts NaN"
    ):
        report = prune_checkpoint(short_demo, tmp_path / "auto", config=CONFIG, **OPTIONS)
    assert report.perplexity.uniform is not None
    assert notes(report) == []

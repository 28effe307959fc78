"""The plan of a search is compared with uniform sparsity on the selection text, both with the whole recovery."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_farms import CalibrationConfig, EvaluationConfig, PruneConfig, SelectionConfig, prune_checkpoint
from hf_farms.data.selection import selection_sequences, split_selection
from hf_farms.errors import HfFarmsWarning, ModelError
from hf_farms.loading.names import ModelRef
from hf_farms.loading.opening import load_model
from hf_farms.metrics.nll import TextNll, text_nll
from hf_farms.reports import SearchRecord
from hf_farms.workflows import recovered_choice, selection

CONFIG = PruneConfig(allocation="auto", recover="submodule", recover_passes=1)
OPTIONS = {
    "calibration": CalibrationConfig(num_sequences=2, sequence_length=64),
    "evaluation": EvaluationConfig(max_windows=2),
    "selection": SelectionConfig(sequence_length=256),
}
BEGIN = "With the whole recovery, the NLL of "


@pytest.fixture(autouse=True)
def found(monkeypatch):
    """What a search found: it has tests of its own, and would take a minute."""
    record = SearchRecord(winner="move 1", sparsities=(0.4, 0.6) * 4)
    monkeypatch.setattr(selection, "search_sparsities", lambda *_, **__: record)
    monkeypatch.setattr(recovered_choice, "FINALIST_TOKENS", 1024)


def notes(report):
    return [note for note in report.notes if note.startswith(BEGIN)]


def measured(folder):
    """The NLL of the first four sequences, measured on the finished model."""
    model = load_model(ModelRef.parse("demo", None))
    batches, _ = selection_sequences(OPTIONS["selection"], model=model.model, tokenizer=model.tokenizer)
    rows = torch.cat([row["input_ids"] for row in split_selection(batches).acceptance])[:4]
    pruned = AutoModelForCausalLM.from_pretrained(folder)
    assert pruned.config.vocab_size == model.model.config.vocab_size
    return text_nll(pruned, rows.flatten(), context_length=256)


def test_both_are_measured_on_finished_models_and_a_run_that_was_killed_knows_the_first(tmp_path):
    def interrupt(stage, done, total):
        if stage == "Measuring spectra again":
            raise KeyboardInterrupt("as Ctrl-C does")

    with pytest.raises(KeyboardInterrupt, match="as Ctrl-C does"):
        prune_checkpoint("demo", tmp_path / "auto", config=CONFIG, progress=interrupt, **OPTIONS)
    report = prune_checkpoint("demo", tmp_path / "auto", config=CONFIG, **OPTIONS)
    prune_checkpoint("demo", tmp_path / "uniform", config=replace(CONFIG, allocation="uniform"), **OPTIONS)
    expected = recovered_choice.comparison(measured(tmp_path / "auto"), measured(tmp_path / "uniform"))
    assert expected.startswith(f"{BEGIN}1,020 tokens of the selection text, on which no plan was chosen, is ")
    assert notes(report) == [expected]
    assert expected in (tmp_path / "auto" / "README.md").read_text()


def test_nothing_is_compared_without_a_baseline_or_a_recovery(tmp_path):
    alone = prune_checkpoint("demo", tmp_path / "alone", config=CONFIG, baseline=False, **OPTIONS)
    plain = replace(CONFIG, recover="none", recover_passes=None)
    assert notes(alone) == notes(prune_checkpoint("demo", tmp_path / "plain", config=plain, **OPTIONS)) == []


def nll(*windows):
    return TextNll(windows, context_length=64, num_tokens=63 * len(windows))


def test_the_sentence_tells_of_uniform_sparsity_that_is_better_by_two_errors():
    base, worse = nll(*[3.0, 3.2, 3.4] * 3), nll(*[3.1, 3.3, 3.51] * 3)
    assert recovered_choice.comparison(worse, base) == (
        "With the whole recovery, the NLL of 567 tokens of the selection text, on which no plan was chosen, is 3.303 "
        "with the plan of the search and 3.200 with uniform sparsity (+0.103 ± 0.002): uniform sparsity was better on "
        "this text, try `allocation='uniform'`."
    )
    assert recovered_choice.comparison(base, worse).endswith(" with uniform sparsity (-0.103 ± 0.002).")
    assert recovered_choice.comparison(nll(*[3.1, 3.1, 3.5] * 3), nll(*[3.0, 3.3, 3.4] * 3)).endswith(
        "(+0.000 ± 0.050)."
    )
    # Too few sequences to rely on.
    assert recovered_choice.comparison(nll(3.1, 3.3, 3.51), nll(3.0, 3.2, 3.4)).endswith("(+0.103 ± 0.003).")
    assert recovered_choice.comparison(nll(3.1), nll(3.0)).endswith(" and 3.000 with uniform sparsity.")


def test_a_comparison_that_fails_keeps_the_baseline(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise ModelError("the model predicts NaN.")

    monkeypatch.setattr(recovered_choice, "text_nll", fails)
    with pytest.warns(
        HfFarmsWarning, match="^The result is not compared with uniform sparsity: the model predicts NaN"
    ):
        report = prune_checkpoint("demo", tmp_path / "auto", config=CONFIG, **OPTIONS)
    assert report.perplexity.uniform is not None
    assert notes(report) == []

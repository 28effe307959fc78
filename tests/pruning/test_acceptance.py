"""Recovery that is accepted on sequences of a selection text, to which nothing is fitted."""

import pytest
import torch
from models import tiny

from hf_farms.config import PruneConfig
from hf_farms.errors import DataError
from hf_farms.pruning.pruner import prune

# Masks of magnitude do not depend on the sequences.
RECOVER = {"allocation": "uniform", "method": "magnitude", "recover": "submodule"}


def sequences(seed, count=6, length=40):
    return list(torch.randint(0, 100, (count, 1, length), generator=torch.Generator().manual_seed(seed)))


def recovered(calibration, selection, **options):
    """Return weights of a pruned model of one block, and the report."""
    model = tiny("llama", num_hidden_layers=1)
    config = PruneConfig(**RECOVER, **options)
    report = prune(model, config, calibration=calibration, selection=selection).report
    return [parameter.detach().clone() for parameter in model.parameters()], report


def is_equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_nothing_is_fitted_to_the_acceptance_sequences(many):
    results = [recovered(many, sequences(seed)) for seed in (5, 6)]
    assert is_equal(results[0][0], results[1][0])
    errors = [[part.error for part in report.blocks[0].recovery] for _, report in results]
    assert errors[0] != errors[1]
    assert all(part.accepted for _, report in results for part in report.blocks[0].recovery)
    # Only the second half of the selection data is read.
    search, accept = sequences(7, 3), sequences(5)[3:]
    assert [part.error for part in recovered(many, search + accept)[1].blocks[0].recovery] == errors[0]
    assert results[0][1].acceptance.num_sequences == 3
    assert results[0][1].acceptance.num_tokens == 120
    assert results[0][1].calibration.num_sequences == 8


@pytest.mark.parametrize("given", [True, False])
def test_the_last_of_eight_sequences_is_fitted_where_others_accept(many, given):
    changed = many[0].clone()
    changed[7] = changed[7].flip(0)
    selection = sequences(5) if given else None
    one, other = (recovered([ids], selection)[0] for ids in (many[0], changed))
    assert is_equal(one, other) != given


def test_the_acceptance_sequences_decide(many):
    """A fit to one sequence does not help on sequences of other tokens."""
    calibration = [torch.zeros(8, 40, dtype=torch.long)]
    options = {"recover_rate": 0.2}
    held_out = recovered(calibration, None, **options)[1]
    assert all(part.accepted for part in held_out.blocks[0].recovery)
    assert held_out.acceptance is None
    weights, report = recovered(calibration, sequences(5), **options)
    assert not any(part.accepted for part in report.blocks[0].recovery)
    model = tiny("llama", num_hidden_layers=1)
    prune(model, PruneConfig(**{**RECOVER, "recover": "none"}))
    assert is_equal(weights, model.parameters())
    note = "of 2 of 2 submodules on 120 tokens of the selection text that nothing was fitted to, first model.layers.0"
    assert any(note in text for text in report.notes)


def test_one_calibration_sequence_is_enough_with_a_selection_text(many):
    _, report = recovered([many[0][:1]], iter(sequences(5)))
    assert report.acceptance.num_sequences == 3
    assert not any("at least 2 sequences" in note for note in report.notes)


def test_selection_data_is_refused_as_for_a_search(many):
    with pytest.raises(DataError, match="selection must have at least four sequences, two in each half, got 3"):
        recovered(many, sequences(5, 3))
    with pytest.raises(DataError, match="selection text must not be the calibration text, got a sequence that is in"):
        recovered(many, [*sequences(5), many[0][2:3]])
    with pytest.raises(DataError, match="selection token ids must be below 100, got 1"):
        recovered(many, [ids + 100 for ids in sequences(5)])


@pytest.mark.parametrize(
    ("selection", "message"),
    [(5, "got 5. Pass a list"), ("text", "got 'text'. Tokenize"), ({"input_ids": torch.ones(4, 8)}, "got a single")],
)
def test_selection_data_of_another_kind_are_refused(selection, message, many):
    with pytest.raises(DataError, match=f"^selection must be .*{message}"):
        recovered(many, selection)


def test_a_loader_that_shuffles_is_read_once(many):
    class Loader:
        reads = 0

        def __iter__(self):
            self.reads += 1
            return iter(sequences(self.reads))

    loader = Loader()
    config = PruneConfig(allocation="sensitivity", method="magnitude", recover="submodule")
    prune(tiny("llama", num_hidden_layers=1), config, calibration=many, selection=loader)
    assert loader.reads == 1


def test_masked_tokens_do_not_count(many):
    errors = []
    for pad in (3, 77):
        selection = []
        for ids in sequences(5):
            mask = torch.ones_like(ids)
            mask[:, 25:] = 0
            selection.append({"input_ids": ids.masked_fill(mask == 0, pad), "attention_mask": mask})
        report = recovered(many, selection)[1]
        errors.append([part.error for part in report.blocks[0].recovery])
        assert report.acceptance.num_tokens == 75
    assert errors[0] == pytest.approx(errors[1], rel=1e-6)


def test_a_model_loaded_by_name_is_accepted_on_the_text_of_the_package():
    ids = torch.randint(0, 100, (2, 32), generator=torch.Generator().manual_seed(0))
    report = prune("demo", PruneConfig(**RECOVER), calibration=[ids]).report
    assert 2048 < report.acceptance.num_tokens <= 4096

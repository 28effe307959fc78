"""Sentences on a recovery of blocks, and on a distillation after it."""

from dataclasses import replace

import pytest
from cards import full
from hf_farms_cards import render_card

from hf_farms.reports import DistillationRecord, RecoveredPart


@pytest.fixture
def report():
    """A pruned model whose blocks were recovered, and that was trained then."""
    whole = full()
    part = RecoveredPart(name="attention", error_before=0.4, error=0.2, accepted=True)
    blocks = tuple(replace(block, recovery=(part,)) for block in whole.blocks)
    record = DistillationRecord(divergence_before=0.25, divergence=0.125, accepted=True, steps=320)
    return replace(whole, config=replace(whole.config, recover="distill"), blocks=blocks, distillation=record)


def text(report):
    return " ".join(render_card(report, repo_id="me/pruned").split())


def test_it_stands_behind_the_recovery_of_blocks(report):
    card = text(report)
    assert "fell from 0.4 to 0.2 (median) on calibration sequences that were held out. Then all" in card
    assert "fell from 0.25 to 0.125 nats per token on these sequences, in 320 steps." in card
    assert card.index("@article{wagner2025recovery") < card.index("@article{hinton2015distilling")


@pytest.mark.parametrize(
    ("kept", "sentence"),
    [
        (0, "None of the 3 fits lowered the squared error of the outputs on TEXT: none was kept."),
        (1, "of the ideal ones, stayed at 0.4 (median) on TEXT. Only fits that lowered it were kept, 1 of 3."),
        (2, "of the ideal ones, fell from 0.4 to 0.2 (median) on TEXT. Only fits that lowered it were kept, 2 of 3."),
        (3, "of the ideal ones, fell from 0.4 to 0.2 (median) on TEXT."),
    ],
)
def test_fits_that_were_not_kept_are_said(report, kept, sentence):
    parts = tuple(RecoveredPart(name="x", error_before=0.4, error=0.2, accepted=index < kept) for index in range(3))
    blocks = [replace(block, recovery=()) for block in report.blocks]
    blocks[0] = replace(blocks[0], recovery=parts)
    config = replace(report.config, recover="submodule")
    card = text(replace(report, config=config, blocks=tuple(blocks), distillation=None))
    assert sentence.replace("TEXT", "calibration sequences that were held out") in card
    assert ("fell from 0.4" in card) == (kept > 1)
    assert ("Only fits" in card) == (0 < kept < 3)


@pytest.mark.parametrize("loss", [0.3, None])
def test_one_that_was_not_used_is_said(report, loss):
    refused = replace(report.distillation, divergence=loss, accepted=False)
    card = text(replace(report, distillation=refused))
    assert "did not lower the KL divergence on these sequences, and was not used." in card
    assert "Then all remaining weights" not in card
    assert refused.final_divergence == 0.25


def test_the_trained_weights_are_named(report):
    assert "all remaining weights of the pruned layers were trained together" in text(report)
    selected = replace(report, config=replace(report.config, recover_budget=0.05))
    assert "a selection of heads and channels, 0.05 of the parameters, was trained together" in text(selected)

import sys
from dataclasses import replace

import pytest
from hf_farms_cards import render_card
from hf_farms_cards.figures import draw_blocks
from huggingface_hub import ModelCard
from jinja2 import UndefinedError

from hf_farms.config import PruneConfig

sys.path.append(str(__import__("pathlib").Path(__file__).parents[1]))
from test_reports import pruned


def test_a_reader_finds_what_was_measured():
    card = ModelCard(render_card(pruned(), repo_id="me/y-farms-wanda-50"))
    assert card.data.base_model == "x/y"
    assert {"hf-farms", "pruned", "sparse", "farms", "wanda"} <= set(card.data.tags)
    assert card.data.eval_results[0].metric_value == 20.0
    for words in (
        "50.00% of the weights of its linear layers set to zero; perplexity 10.00 → 20.00 (speeches, context 64)",
        'from_pretrained("me/y-farms-wanda-50")',
        "| model.layers.0 | 2.500 | – | 2.500 | 50.00% | 50.00% |",
        "50.0000% of the pruned layers, 40.00% of all 2000 parameters",
        "0.6900 ± 0.0100 (paired over windows)",
        "2306.11695",
        "2506.06280",
        "(figures/blocks.png)",
    ):
        assert words in card.text, words


def test_what_was_not_measured_is_not_claimed():
    report = replace(
        pruned(),
        perplexity=None,
        after=None,
        before=None,
        calibration=None,
        config=PruneConfig(method="magnitude", allocation="uniform"),
    )
    card = ModelCard(render_card(report))
    assert "Perplexity was not measured." in card.text
    assert "| model.layers.0 | – | – | – | 50.00% | 50.00% |" in card.text
    assert card.data.eval_results is None
    assert "2306.11695" not in card.text
    assert "2410.10912" not in card.text


@pytest.mark.parametrize("model", ["demo", "/a/folder", "./folder/x", "../x", "folder"])
def test_a_local_model_is_no_base_model(model):
    assert ModelCard(render_card(replace(pruned(), model=model))).data.base_model is None


def test_no_blank_is_left(monkeypatch):
    monkeypatch.setattr("hf_farms_cards.card._rows", lambda report: [{"block": {}}])
    with pytest.raises(UndefinedError, match="has no attribute"):
        render_card(pruned())


def test_figure(tmp_path):
    draw_blocks(pruned(), tmp_path / "blocks.png")
    assert (tmp_path / "blocks.png").read_bytes().startswith(b"\x89PNG")
    draw_blocks(replace(pruned(), before=None, after=None), tmp_path / "bare.png")
    assert (tmp_path / "bare.png").stat().st_size > 1000

"""Cards of adapters, of their description alone."""

import pytest
from hf_farms_cards.adapter_card import render_adapter_card
from huggingface_hub import ModelCard

from hf_farms import S2FTConfig
from hf_farms.reports import BaseModelRecord, json_converter

WEIGHT = {"shape": [32, 48], "side": "inputs", "dim": 1, "channels": 5, "includes_base": True}
DESCRIPTION = {
    "base_model": "someone/model",
    "base_revision": "abc123",
    "selection": None,
    "dtype": "bfloat16",
    "weights": {"a.weight": WEIGHT, "b.weight": {**WEIGHT, "dim": 0, "channels": 2}},
    "versions": {"hf-farms": "1.0"},
}


def test_an_adapter_of_two_compared_models():
    card = render_adapter_card(DESCRIPTION, repo_id="ada/math")
    assert "256 values (bfloat16) of whole channels in 2 weights" in card
    assert 'S2FTAdapter.from_pretrained("ada/math")' in card
    assert 'from_pretrained("someone/model", revision="abc123", dtype=torch.bfloat16)' in card
    assert "By comparing the fine-tuned model with its base" in card
    assert "S2FTCallback" not in card
    assert "were left out" not in card
    data = ModelCard(card).data.to_dict()
    assert data["base_model"] == "someone/model"
    assert (data["base_model_relation"], data["library_name"], data["tags"]) == (
        "adapter",
        "hf-farms",
        ["hf-farms", "s2ft"],
    )


def test_an_adapter_of_a_selection_with_a_licence():
    config = json_converter().unstructure(S2FTConfig(budget=0.02, roles=("v", "down")))
    base = BaseModelRecord(repo_id="someone/model", revision=None, license="apache-2.0", card_read=True)
    weights = {"a.weight": {**WEIGHT, "includes_base": False}}
    card = render_adapter_card({**DESCRIPTION, "selection": config, "weights": weights}, repo_id="ada/math", base=base)
    assert 'S2FTCallback(S2FTConfig(budget=0.02, roles=("v", "down")))' in card.replace("'", '"')
    assert "Budget: 2.00% of the parameters" in card
    assert "a model that was saved with the adapter merged cannot be unmerged" in card
    assert "Apache License 2.0" in card


@pytest.mark.parametrize("name", ["./tuned", None])
def test_a_base_model_that_is_not_on_the_hub(name):
    card = render_adapter_card({**DESCRIPTION, "base_model": name}, repo_id="ada/math")
    assert 'from_pretrained("BASE_MODEL", dtype=torch.bfloat16)' in card
    assert "base_model" not in ModelCard(card).data.to_dict()

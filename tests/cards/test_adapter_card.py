"""Cards of adapters, of their description alone."""

import pytest
from hf_farms_cards.adapter_card import render_adapter_card
from huggingface_hub import ModelCard

from hf_farms import S2FTConfig
from hf_farms.reports import BaseModelRecord, json_converter
from hf_farms.reports.adapters import layer_names

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


def test_an_adapter_of_a_selection_with_a_license():
    config = json_converter().unstructure(S2FTConfig(budget=0.02, roles=("v", "down")))
    base = BaseModelRecord(repo_id="someone/model", revision=None, license="apache-2.0", card_read=True)
    weights = {"a.weight": {**WEIGHT, "includes_base": False}}
    card = render_adapter_card({**DESCRIPTION, "selection": config, "weights": weights}, repo_id="ada/math", base=base)
    assert 'S2FTCallback(S2FTConfig(budget=0.02, roles=("v", "down")))' in card.replace("'", '"')
    assert "Budget: 2.00% of the parameters" in card
    assert "a model that was saved with the adapter merged cannot be unmerged" in card
    assert "Apache License 2.0" in card


def test_the_table_of_channels_has_a_row_for_each_layer():
    def weight(name, **fields):
        return {name: {**WEIGHT, **fields}}

    weights = {
        **weight("h.0.attn.c_proj.weight", dim=0, shape=[64, 48], channels=3),
        **weight("h.0.mlp.c_proj.weight", channels=1200, shape=[32, 4800]),
        **weight("h.1.attn.c_proj.weight", dim=0, shape=[64, 48], channels=7),
        **weight("h.1.mlp.up.weight", side="outputs", dim=0, channels=2),
    }
    card = render_adapter_card({**DESCRIPTION, "weights": weights}, repo_id="ada/math")
    rows = [line for line in card.splitlines() if line.startswith("| `")]
    assert rows == [
        "| `attn.c_proj` | inputs | 2 | 3–7 | 480 |",
        "| `mlp.c_proj` | inputs | 1 | 1,200 | 38,400 |",
        "| `up` | outputs | 1 | 2 | 96 |",
    ]
    assert "38,976 values (bfloat16) of whole channels in 4 weights" in card


def test_the_shortest_names_of_layers():
    names = ["model.layers.0.self_attn.o_proj.weight", "model.layers.11.mlp.experts.3.down_proj.weight", "score.weight"]
    assert list(layer_names(names).values()) == ["o_proj", "down_proj", "score"]
    names = ["encoder.layer.0.attention.output.dense.weight", "encoder.layer.0.output.dense.weight", "pooler.dense"]
    assert list(layer_names(names).values()) == ["attention.output.dense", "output.dense", "pooler.dense"]


@pytest.mark.parametrize(("local", "base_model"), [(False, "gpt2"), (True, None)])
def test_a_name_without_a_namespace_is_an_id_only_with_a_record_of_the_hub(local, base_model):
    record = BaseModelRecord(repo_id="gpt2", revision=None, license="mit", card_read=True, local=local)
    card = render_adapter_card({**DESCRIPTION, "base_model": "gpt2"}, repo_id="ada/math", base=record)
    assert ModelCard(card).data.to_dict().get("base_model") == base_model


@pytest.mark.parametrize("name", ["./tuned", None])
def test_a_base_model_that_is_not_on_the_hub(name):
    card = render_adapter_card({**DESCRIPTION, "base_model": name}, repo_id="ada/math")
    assert 'from_pretrained("BASE_MODEL", dtype=torch.bfloat16)' in card
    assert "base_model" not in ModelCard(card).data.to_dict()

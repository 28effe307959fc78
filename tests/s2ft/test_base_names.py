"""The name of the base model in an adapter and in the LoRA that is exported from it."""

import json
import shutil
from dataclasses import replace

import pytest
from adapters import change_slices
from transformers import AutoModelForCausalLM

from hf_farms import S2FTAdapter, S2FTConfig, apply_s2ft
from hf_farms.demo import demo_model
from hf_farms.s2ft.adapters.lora_export import export_lora


@pytest.fixture(scope="module")
def of_demo():
    model = AutoModelForCausalLM.from_pretrained(demo_model())
    apply_s2ft(model, S2FTConfig(budget=0.05))
    return S2FTAdapter.from_model(change_slices(model))


def test_an_adapter_of_the_demo_names_it(of_demo):
    assert of_demo.base_model == "demo"


@pytest.mark.parametrize(
    ("recorded", "given", "written"),
    [
        ("demo", None, "demo"),
        ("./model", "demo", "demo"),
        (None, "demo", "demo"),
        ("./model", "model in memory", "demo"),
        ("demo", "folder", "./copy"),
        ("./model", "folder", "./copy"),
        ("someone/model", "folder", "someone/model"),
        ("someone/model", "demo", "someone/model"),
    ],
)
def test_the_config_names_the_base(of_demo, recorded, given, written, tmp_path):
    adapter = replace(of_demo, base_model=recorded, base_revision="abc")
    base = given
    if given == "folder":
        base = tmp_path / "copy"
        shutil.copytree(demo_model(), base)
    elif given == "model in memory":
        base = AutoModelForCausalLM.from_pretrained(demo_model())
    export_lora(adapter, tmp_path / "lora", base=base)
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    kept = written == recorded
    assert (config["base_model_name_or_path"], config["revision"]) == (written, "abc" if kept else None)
    assert str(tmp_path) not in json.dumps(config)

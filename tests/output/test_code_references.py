"""Configs of a pruned model refer to no code that is not beside them."""

import json

import pytest
from hf_farms_cli.app import app
from models import tiny
from transformers import AutoTokenizer
from typer.testing import CliRunner

from hf_farms.demo import demo_model
from hf_farms.output.code_references import drop_code_references

MAP = {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "other/repo--modeling_x.X"}


def write(folder, name, **changes):
    path = folder / name
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(found | changes))


@pytest.mark.parametrize(
    ("config", "left"),
    [
        ({"auto_map": MAP, "a": 1}, {"a": 1}),
        ({"text_config": {"auto_map": MAP, "hidden_size": 3}}, {"text_config": {"hidden_size": 3}}),
        ({"auto_map": {"AutoTokenizer": ["tokenization_x.X", None]}}, {}),
        ({"auto_map": ["tokenization_x.X", None]}, {}),
        ({"auto_map": None}, {}),
        ({"auto_map": 3}, {}),
        ({"custom_pipelines": {"mine": {"impl": "pipe.Mine", "pt": ["AutoModel"]}}}, {}),
        (
            {"processor_class": "MyProcessor", "tokenizer_class": "LlamaTokenizer"},
            {"tokenizer_class": "LlamaTokenizer"},
        ),
        ({"list": [{"auto_map": MAP}, "auto_map"]}, {"list": [{}, "auto_map"]}),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "preprocessor_config.json"])
def test_what_leads_to_no_file_is_dropped(tmp_path, name, config, left):
    write(tmp_path, name, **config)
    write(tmp_path, "tokenizer.json", auto_map=MAP)  # no config
    assert drop_code_references(tmp_path) == (name,)
    assert json.loads((tmp_path / name).read_text()) == left
    assert json.loads((tmp_path / "tokenizer.json").read_text()) == {"auto_map": MAP}
    assert drop_code_references(tmp_path) == ()


def test_code_that_was_saved_with_the_model_stays_known(tmp_path):
    (tmp_path / "configuration_x.py").touch()
    (tmp_path / "pipe.py").touch()
    pipelines = {"mine": {"impl": "pipe.Mine", "pt": ["AutoModel"]}}
    write(tmp_path, "config.json", auto_map=MAP, custom_pipelines=pipelines)
    assert drop_code_references(tmp_path) == ("config.json",)
    found = json.loads((tmp_path / "config.json").read_text())
    assert found == {"auto_map": {"AutoConfig": "configuration_x.XConfig"}, "custom_pipelines": pipelines}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_a_pruned_model_takes_neither_references_nor_links_along(tmp_path, stream):
    dense = tmp_path / "dense"
    AutoTokenizer.from_pretrained(demo_model()).save_pretrained(dense)
    tiny("llama", vocab_size=2048).save_pretrained(dense)
    write(dense, "config.json", auto_map=MAP)
    write(dense, "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_x.X", None]})
    options = ["--method", "magnitude", "--evaluation", "none", "--allocation", "uniform", stream, "-o"]
    done = CliRunner().invoke(app, ["prune", str(dense), *options, str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert not any(b"auto_map" in path.read_bytes() for path in (tmp_path / "out").glob("*.json"))
    (tmp_path / "private").write_text('{"auths": "geheim"}')
    (dense / "generation_config.json").unlink()
    for name in ("generation_config.json", "chat_template.jinja", "LICENSE"):
        (dense / name).symlink_to(tmp_path / "private")
    done = CliRunner().invoke(app, ["prune", str(dense), *options, str(tmp_path / "linked")])
    assert done.exit_code == 0, done.output
    said = " ".join(done.stderr.split())
    assert "chat_template.jinja, generation_config.json of" in said
    assert "lead to other places: they are read and not copied, and the result has no tokenizer of its own" in said
    assert "LICENSE of" in said
    written = {path.name: path.read_bytes() for path in (tmp_path / "linked").iterdir() if path.is_file()}
    assert not any(b"geheim" in data for data in written.values())
    assert not {"generation_config.json", "chat_template.jinja", "tokenizer.json", "LICENSE"} & set(written)

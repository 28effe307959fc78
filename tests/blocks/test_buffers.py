"""Buffers that no file holds are those of the model in memory, whichever module computes them."""

import pytest
import torch
import transformers
from auto_families import build, families
from models import tiny
from safetensors.torch import load_file

from hf_farms.errors import ModelError
from hf_farms.loading.opening import load_model

pytestmark = pytest.mark.filterwarnings("ignore:No layout is known")


def litter():
    """Leave NaN where memory that is not initialized may come from."""
    return [torch.full((size,), float("nan")) for size in (16, 64, 256, 1024, 4096) for _ in range(32)] and None


# A module fills those of the modules inside it; masks of every block; positions; scales; tables.
@pytest.mark.parametrize("family", ["falcon_h1", "gpt_neo", "gptj", "gemma3n_text", "roc_bert", "deepseek_v4", "jamba"])
def test_streamed_buffers_are_those_in_memory(family, tmp_path):
    build(*families()[family]).save_pretrained(tmp_path)
    litter()
    whole = load_model(str(tmp_path), tokenizer=False, stream=False).source
    litter()
    streamed = load_model(str(tmp_path), tokenizer=False, stream=True).source
    expected = dict(whole.model.named_buffers())
    for index in range(len(whole)):
        streamed.open(index)
        found = dict(streamed.model.named_buffers())
        inside = f"{whole.metadata(index).name}."
        for name, buffer in expected.items():
            if name.startswith(inside):
                assert torch.equal(found[name], buffer)
                assert found[name].dtype == buffer.dtype
    assert found.keys() == expected.keys()
    assert not any(buffer.is_meta for name, buffer in found.items() if not name.startswith("model.layers."))


def test_a_buffer_that_nobody_computes_is_refused_and_not_left_to_chance(tmp_path, monkeypatch):
    tiny("llama").save_pretrained(tmp_path)
    mlp = transformers.models.llama.modeling_llama.LlamaMLP
    init = mlp.__init__

    def with_buffer(self, config):
        init(self, config)
        self.register_buffer("scale", torch.ones(3), persistent=False)

    monkeypatch.setattr(mlp, "__init__", with_buffer)
    with pytest.raises(
        ModelError, match=r"buffers must be in the files or computed by the model, got neither for .*scale"
    ):
        load_model(str(tmp_path), tokenizer=False, stream=True)


def test_weights_that_a_model_never_saves_are_computed(tmp_path):
    build(*families("seq2seq")["marian"]).save_pretrained(tmp_path)
    whole, streamed = (load_model(str(tmp_path), tokenizer=False, stream=stream).source for stream in (False, True))
    name = "model.encoder.embed_positions.weight"
    assert torch.equal(streamed.model.get_parameter(name), whole.model.get_parameter(name))
    assert streamed.count_parameters() == whole.count_parameters()


def test_stored_embeddings_of_padding_stay(tmp_path):
    config, model = transformers.ChineseCLIPConfig, transformers.ChineseCLIPModel
    build(config, model).save_pretrained(tmp_path)
    name = "text_model.embeddings.word_embeddings.weight"
    stored = load_file(tmp_path / "model.safetensors")[name]
    assert bool(stored[0].any())
    for stream in (False, True):
        source = load_model(str(tmp_path), tokenizer=False, stream=stream).source
        assert torch.equal(source.model.get_parameter(name), stored)

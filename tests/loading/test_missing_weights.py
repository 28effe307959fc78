"""What a checkpoint lacks is refused in one way, whichever way it is loaded."""

import json
import shutil

import pytest
import torch
from families import family_model
from models import tiny, tiny_bert
from safetensors.torch import load_file, save_file

from hf_farms.errors import HfFarmsWarning, ModelError
from hf_farms.loading.opening import load_model, open_model

pytestmark = pytest.mark.filterwarnings(r"ignore:\d+ of \d+ layers are smaller than windows")

WAYS = {
    "in memory": lambda folder, **options: load_model(str(folder), tokenizer=False, stream=False, **options),
    "streamed": lambda folder, **options: load_model(str(folder), tokenizer=False, stream=True, **options),
    "opened": lambda folder, **options: open_model(folder, **options),
}


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A llama of three blocks with a head of its own."""
    folder = tmp_path_factory.mktemp("dense")
    tiny("llama").save_pretrained(folder)
    return folder


@pytest.fixture(params=WAYS)
def way(request):
    return WAYS[request.param]


def changed(dense, folder, tensors=lambda stored: stored, **config):
    """A copy with other tensors and another config."""
    shutil.copytree(dense, folder)
    stored = {key: value.clone() for key, value in load_file(dense / "model.safetensors").items()}
    save_file(tensors(stored), folder / "model.safetensors", {"format": "pt"})
    known = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**known, **config}))
    return folder


def without(*parts):
    return lambda stored: {key: value for key, value in stored.items() if not any(part in key for part in parts)}


def prefixed(stored):
    return {f"transformer.{key}": value for key, value in stored.items()}


def renamed(stored):
    return {key.replace("q_proj", "query"): value for key, value in stored.items()}


REFUSED = {
    "two weights": (
        (without("layers.1.mlp.up_proj", "layers.2.self_attn.o_proj"), {}),
        r"got 2 missing, first model\.layers\.1\.mlp\.up_proj\.weight, model\.layers\.2\.self_attn\.o_proj\.weight",
    ),
    "norm": ((without("model.norm"), {}), r"got 1 missing, first model\.norm\.weight"),
    "embeddings": ((without("embed_tokens"), {}), r"got 1 missing, first model\.embed_tokens\.weight"),
    "head": ((without("lm_head"), {}), r"got 1 missing, first lm_head\.weight"),
    "prefix": (
        (prefixed, {}),
        r"got 30 missing, first model\.embed_tokens\.weight, .* and 27 more, in .*; unexpected: 30 weights, first "
        r"transformer\.lm_head\.weight",
    ),
    "names": ((renamed, {}), r"got 3 missing, first .*q_proj\.weight.*; unexpected: 3 weights, first .*query"),
    "more blocks in the config": (
        (lambda stored: stored, {"num_hidden_layers": 5}),
        r"got 18 missing, first model\.layers\.3\.self_attn\.q_proj\.weight",
    ),
    "more blocks in the files": (
        (lambda stored: stored, {"num_hidden_layers": 2}),
        r"must have all stored layers, got 9 weights of additional layers in .*, first model\.layers\.2\.input",
    ),
    "shapes": (
        (lambda stored: stored, {"intermediate_size": 40}),
        r"must have the shapes that config\.json gives them, \(40, 32\), got \(48, 32\) in "
        r"model\.layers\.0\.mlp\.gate_proj\.weight \(and 8 more\)",
    ),
    "vocabulary": (
        (lambda stored: stored, {"vocab_size": 120}),
        r"\(120, 32\), got \(100, 32\) in model\.embed_tokens",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_missing_is_refused_in_one_way(case, way, dense, tmp_path):
    (tensors, config), message = REFUSED[case]
    with pytest.raises(ModelError, match=message) as refused:
        way(changed(dense, tmp_path / "model", tensors, **config))
    assert refused.value.hint


def test_a_head_that_is_not_used_may_be_missing(way, dense, tmp_path):
    folder = changed(dense, tmp_path / "model", without("lm_head"))
    with pytest.warns(HfFarmsWarning, match=r"lacks 1 weight of the head or pooler, .*: lm_head\.weight\.$"):
        way(folder, head=False)


@pytest.mark.filterwarnings("ignore:LlamaForSequenceClassification does not have")
def test_a_head_that_nothing_can_use_may_be_missing(dense, tmp_path):
    """Of a classifier no command uses the head."""
    folder = changed(dense, tmp_path / "model", architectures=["LlamaForSequenceClassification"], num_labels=3)
    for stream in (False, True):
        with pytest.warns(HfFarmsWarning) as warned:
            loaded = load_model(str(folder), tokenizer=False, stream=stream)
        said = [str(warning.message) for warning in warned]
        assert any("LlamaForSequenceClassification does not have 1 weight of" in message for message in said)
        assert any("lacks 1 weight of the head or pooler" in message and "score.weight" in message for message in said)
        assert loaded.absent == ("score.weight",)
        assert loaded.notes == ("The checkpoint has no weights for the head or pooler (score.weight).",)
        assert not loaded.model.score.weight.is_meta
    with pytest.warns(HfFarmsWarning, match=r"lacks 1 weight of the head or pooler, .*score\.weight"):
        assert [view.name for view in open_model(folder).outside] == ["model.embed_tokens"]
    with pytest.raises(ModelError, match=r"got 1 missing, first score\.weight"):
        open_model(folder, head=True)


def test_a_pooler_may_be_missing(way, tmp_path):
    import transformers

    bert = transformers.BertForSequenceClassification(tiny_bert().config)
    bert.save_pretrained(tmp_path / "bert")
    folder = changed(tmp_path / "bert", tmp_path / "model", without("pooler"))
    with pytest.warns(HfFarmsWarning, match=r"lacks 2 weights of the head or pooler, .*bert\.pooler\.dense\.weight"):
        way(folder)


def test_weights_without_a_place_are_told(way, dense, tmp_path):
    folder = changed(dense, tmp_path / "model", lambda stored: {**stored, "extra.scale": torch.ones(2)})
    with pytest.warns(HfFarmsWarning, match=r"LlamaForCausalLM does not have 1 weight of .*: extra\.scale\.$"):
        way(folder)


def test_layers_of_multi_token_prediction_are_no_missing_blocks(way, tmp_path):
    """They lie behind the last block, and transformers leaves them out."""
    model = family_model("deepseek_v3")
    model.save_pretrained(tmp_path / "dense")

    def more(stored):
        last = {k: v.clone() for k, v in stored.items() if k.startswith("model.layers.1.")}
        return {**stored, **{k.replace("layers.1.", "layers.2."): v for k, v in last.items() if "experts" not in k}}

    def predicting(stored):
        return {**more(stored), "model.layers.2.eh_proj.weight": torch.ones(32, 64)}

    with pytest.warns(HfFarmsWarning, match=r"DeepseekV3ForCausalLM does not have \d+ weights"):
        way(changed(tmp_path / "dense", tmp_path / "model", predicting))
    with pytest.raises(ModelError, match="must have all stored layers"):
        way(changed(tmp_path / "dense", tmp_path / "plain", more))
    with pytest.raises(ModelError, match="must have all stored layers"):
        way(changed(tmp_path / "dense", tmp_path / "none", predicting, num_mtp_layers=0, num_nextn_predict_layers=0))


def test_an_expert_that_is_missing_is_told(way, tmp_path):
    family_model("mixtral").save_pretrained(tmp_path / "dense")
    folder = changed(tmp_path / "dense", tmp_path / "model", without("layers.1.block_sparse_moe.experts.3."))
    with pytest.raises(
        ModelError, match=r"\(4, 96, 32\), got \(3, 96, 32\) in model\.layers\.1\.mlp\.experts\.gate_up"
    ):
        way(folder)


def test_experts_that_do_not_fit_together_are_named(way, tmp_path):
    """transformers says "look at the report above", which is in its log."""
    family_model("mixtral").save_pretrained(tmp_path / "dense")
    folder = changed(tmp_path / "dense", tmp_path / "model", without("layers.1.block_sparse_moe.experts.3.w1"))
    message = r"must be convertible by transformers, got .* in model\.layers\.1\.mlp\.experts\.gate_up_proj"
    with pytest.raises(ModelError, match=message):
        way(folder)


@pytest.mark.parametrize("name", ["gpt2", "t5", "bert", "gemma2", "opt", "mixtral", "gemma3", "jamba", "resnet"])
def test_whole_checkpoints_are_loaded_without_a_word(name, way, tmp_path):
    """Tied weights, buffers, names and experts that transformers converts."""
    family_model(name).save_pretrained(tmp_path)
    way(tmp_path)


def test_positions_that_are_computed_need_not_be_stored(way, tmp_path):
    """Marian's are parameters that transformers neither writes nor misses."""
    import transformers

    config = transformers.MarianConfig(
        **{"vocab_size": 100, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "max_position_embeddings": 40},
        **{"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48},
        **{"pad_token_id": 2, "decoder_start_token_id": 0, "eos_token_id": 1},
    )
    transformers.MarianMTModel(config).save_pretrained(tmp_path)
    with pytest.warns(HfFarmsWarning, match="No layout is known"):
        way(tmp_path)


def test_a_buffer_that_is_missing_is_refused(way, tmp_path):
    """It chooses the experts; at zero it is another model."""
    family_model("deepseek_v3").save_pretrained(tmp_path / "dense")
    folder = changed(tmp_path / "dense", tmp_path / "model", without("e_score_correction_bias"))
    with pytest.raises(ModelError, match=r"got 1 missing, first model\.layers\.1\.mlp\.gate\.e_score_correction_bias"):
        way(folder)


def test_counters_of_batches_may_be_missing(way, tmp_path):
    family_model("resnet").save_pretrained(tmp_path / "dense")
    way(changed(tmp_path / "dense", tmp_path / "model", without("num_batches_tracked")))


def test_weights_that_torch_computes_from_others_are_told(tmp_path):
    import transformers

    config = transformers.EncodecConfig(num_filters=4, hidden_size=16, codebook_size=8, upsampling_ratios=[2, 2])
    transformers.EncodecModel(config).save_pretrained(tmp_path)
    with (
        pytest.warns(HfFarmsWarning, match="No layout is known"),
        pytest.raises(
            ModelError, match=r"must be stored directly, got one that torch computes from other parameters"
        ) as told,
    ):
        open_model(tmp_path)
    assert "in memory" in told.value.hint

"""AdapterRouter on models of an encoder and a decoder: layers whose leading dimension is the sample are accepted."""

import copy

import pytest
import torch
from random_adapters import merged, random_patch
from transformers import (
    BertConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GPT2Config,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)

from hf_farms.errors import ModelError
from hf_farms.s2ft.adapters.patches import S2FTAdapter
from hf_farms.s2ft.adapters.router import AdapterRouter

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
TOKENS = torch.randint(2, 64, (6, 9), generator=torch.Generator().manual_seed(3))


def with_decoder(encoder, config_class, model_class):
    """A model of an encoder of this config and a small GPT-2."""
    torch.manual_seed(0)
    decoder = GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=64, n_positions=32, bos_token_id=0, eos_token_id=1)
    config = config_class.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id = 0, 1
    return model_class(config).eval()


def adapter_of(model, names, *, indices, seed=0):
    options = {"side": "inputs", "scale": 1, "generator": torch.Generator().manual_seed(seed)}
    return S2FTAdapter(patches={name: random_patch(model, name, indices=indices, **options) for name in names})


def test_a_text_encoder_of_another_architecture_than_its_decoder():
    encoder = BertConfig(**SIZES, vocab_size=64, max_position_embeddings=32)
    model = with_decoder(encoder, EncoderDecoderConfig, EncoderDecoderModel)
    names = ("encoder.encoder.layer.0.output.dense.weight", "decoder.transformer.h.0.mlp.c_proj.weight")
    adapters = {name: adapter_of(model, names, indices=[seed, 5, 7], seed=seed) for seed, name in enumerate("ab")}
    ids, settings = ["b", None, "a"], {"max_new_tokens": 3, "num_beams": 2, "eos_token_id": None, "pad_token_id": 1}
    batch = {"input_ids": TOKENS[:3], "decoder_input_ids": TOKENS[3:, :4]}
    copies = {name: merged(copy.deepcopy(model), adapter) for name, adapter in adapters.items()} | {None: model}
    one_by_one = [
        copies[name](**{key: value[i : i + 1] for key, value in batch.items()}).logits for i, name in enumerate(ids)
    ]
    tokens = [copies[name].generate(TOKENS[i : i + 1], **settings) for i, name in enumerate(ids)]
    with AdapterRouter(model, adapters) as router, router.using(ids):
        torch.testing.assert_close(model(**batch).logits, torch.cat(one_by_one), rtol=1e-5, atol=1e-6)
        assert torch.equal(model.generate(TOKENS[:3], **settings), torch.cat(tokens))
    # The encoder alone changes the output.
    only = adapter_of(model, names[:1], indices=[0, 5, 7])
    before = model(**batch).logits
    with AdapterRouter(model, [only]) as router, router.using([0, None, 0]):
        changed = (model(**batch).logits - before).abs().amax((1, 2)) > 1e-3
    assert changed.tolist() == [True, False, True]


def test_an_encoder_of_images_in_front_of_a_decoder_is_refused():
    encoder = ViTConfig(**SIZES, image_size=4, patch_size=2)
    model = with_decoder(encoder, VisionEncoderDecoderConfig, VisionEncoderDecoderModel)
    linear = next(name for name, module in model.encoder.named_modules() if isinstance(module, torch.nn.Linear))
    with pytest.raises(ModelError, match=r"layers must be of the text model for a router, got encoder\."):
        AdapterRouter(model, [adapter_of(model, [f"encoder.{linear}.weight"], indices=[1, 2])])

"""The longest sequence of a model, against what the model itself takes."""

from contextlib import nullcontext

import pytest
import torch
import transformers
from auto_families import build, families
from families import family_model

from hf_farms.data.calibration import context_limit


def limited(model_type, **changes):
    """A tiny model of 40 positions."""
    sizes = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.AutoConfig.for_model(
        model_type, **{**sizes, "intermediate_size": 48, "max_position_embeddings": 40, **changes}
    )

    return transformers.AutoModelForMaskedLM.from_config(config).eval()


@pytest.mark.parametrize(
    ("model_type", "limit"),
    [
        *(("bert", 40), ("roberta", 38), ("xlm-roberta", 38), ("camembert", 38), ("mpnet", 38)),
        *(("roberta-prelayernorm", 38), ("data2vec-text", 38), ("ibert", 38)),
    ],
)
def test_positions_that_count_from_behind_the_padding_index(model_type, limit):
    model = limited(model_type, pad_token_id=1)
    assert context_limit(model) == limit
    with torch.no_grad():
        model(torch.full((1, limit), 5))
        with pytest.raises((IndexError, RuntimeError), match=r"out of range|must match|size|index"):
            model(torch.full((1, limit + 1), 5))


def test_positions_of_the_next_token():
    model = build(*families("seq2seq")["prophetnet"])
    assert context_limit(model) == 126
    for length, fits in ((126, nullcontext()), (127, pytest.raises(IndexError, match=r"out of range"))):
        ids = torch.full((1, length), 5)
        with torch.no_grad(), fits:
            model(input_ids=ids, decoder_input_ids=ids)


def test_a_model_of_any_length_has_no_limit():
    xlnet = transformers.XLNetLMHeadModel(
        transformers.XLNetConfig(vocab_size=60, d_model=32, n_layer=2, n_head=4, d_inner=48)
    )
    assert xlnet.config.max_position_embeddings == -1
    assert context_limit(xlnet) is None


def test_limits_of_other_names():
    mpt = transformers.MptForCausalLM(
        transformers.MptConfig(d_model=32, n_heads=4, n_layers=2, max_seq_len=40, vocab_size=60)
    )
    assert context_limit(mpt) == 40
    assert context_limit(family_model("gpt2")) == 1024
    assert context_limit(family_model("opt")) == 64
    gemma = family_model("gemma3")
    assert context_limit(gemma) == gemma.config.text_config.max_position_embeddings

"""What is trained, in words."""

import re

import pytest
from families import family_model
from models import tiny

from hf_farms import S2FTConfig, apply_s2ft
from hf_farms.s2ft.selection import Selection
from hf_farms.s2ft.trainable import print_trainable_parameters, trainable_text


def lines(model, config=None, **options):
    apply_s2ft(model, config, **options)
    return trainable_text(model).splitlines()


def test_the_first_line_is_that_of_peft(llama, capsys):
    total = llama.num_parameters()
    selection = apply_s2ft(llama, S2FTConfig(budget=0.1))
    trained = 32 * sum(len(channels) for channels in selection.channels.values())
    print_trainable_parameters(llama)
    said = capsys.readouterr().out
    assert said.splitlines()[0] == (
        f"trainable params: {trained:,d} || all params: {total:,d} || trainable%: {100 * trained / total:.4f}"
    )
    assert said == trainable_text(llama) + "\n"
    assert sum(p.numel() for p in llama.parameters() if p.requires_grad) == trained


@pytest.mark.parametrize("roles", [("o", "down"), ("v", "o", "down"), ("o",), ("down",)], ids="-".join)
@pytest.mark.parametrize("layout", ["indexed", "permuted"])
def test_heads_and_channels_are_those_of_the_selection(roles, layout, llama):
    config = S2FTConfig(budget=0.06 if len(roles) == 1 else 0.15, roles=roles, layout=layout)
    _, *blocks = lines(llama, config)
    channels = {name: len(found) for name, found in apply_s2ft(tiny("llama"), config).channels.items()}
    expected = []
    if "o" in roles:
        expected.append(f"{channels['model.layers.0.self_attn.o_proj'] // 8} of 4 heads")
    if "down" in roles:
        expected.append(f"{channels['model.layers.0.mlp.down_proj']} of 48 feed-forward channels")
    assert blocks == [f"  {', '.join(expected)} in each of model.layers.0 to model.layers.2"]


def test_blocks_that_differ_have_their_own_lines(llama):
    channels = {
        "model.layers.0.self_attn.o_proj": tuple(range(8, 16)),
        "model.layers.2.self_attn.o_proj": tuple(range(32)),
        "model.layers.2.mlp.down_proj": (3, 40),
    }
    assert lines(llama, selection=Selection(S2FTConfig(), channels))[1:] == [
        "  1 of 4 heads in model.layers.0",
        "  nothing in model.layers.1",
        "  4 of 4 heads, 2 of 48 feed-forward channels in model.layers.2",
    ]


def test_a_selection_of_parts_of_heads(llama):
    channels = {"model.layers.1.self_attn.o_proj": (1, 2, 9), "model.layers.1.self_attn.q_proj": (3,)}
    assert lines(llama, selection=Selection(S2FTConfig(), channels))[2] == (
        "  1 of 32 outputs of q, 3 of 32 inputs of o in model.layers.1"
    )


@pytest.mark.parametrize("name", ["gpt2", "t5", "vit", "phi3", "gpt_neox", "distilbert"])
def test_other_families(name):
    head, *blocks = lines(family_model(name), S2FTConfig(budget=0.1))
    assert re.fullmatch(r"trainable params: [\d,]+ \|\| all params: [\d,]+ \|\| trainable%: \d+\.\d{4}", head)
    (block,) = blocks
    assert re.fullmatch(r"  \d of 4 heads, \d+ of \d+ feed-forward channels in each of \S+\.0 to \S+\.1", block)


def test_a_plain_model(llama):
    with pytest.raises(ValueError, match=r"model must have S2FT on it, got a plain LlamaForCausalLM\. Call apply_s2ft"):
        print_trainable_parameters(llama)

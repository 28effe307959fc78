"""What expert layers are multiplied with, against routing and products written out by hand."""

from contextlib import ExitStack

import pytest
import torch
from families import family_model
from torch import nn

from hf_farms.blocks import ModelBlockSource, TokenMask
from hf_farms.blocks.layouts import is_experts
from hf_farms.errors import ModelError

MODELS = ["mixtral", "qwen3_moe", "gpt_oss", "llama4_text", "deepseek_v2", "deepseek_v3", "qwen3_next", "jamba"]


def moe_block(model):
    """Index of the last block with experts, that block, and the module of its experts."""
    source = ModelBlockSource(model)
    index = max(i for i in range(len(source)) if any(x.kind == "expert" for x in source.metadata(i).layers))
    block = source.open(index)
    return source, index, block, next(m for m in block.module.modules() if is_experts(m))


def heard_in(model, ids, token_mask=None):
    """By layer name what `inputs` delivers in one run, and what the module of the experts was called with."""
    source, index, block, experts = moe_block(model)
    calls = source.capture({"input_ids": ids})
    hidden = calls.hidden
    seen, arguments = {}, []
    with torch.no_grad():
        for i in range(index):
            hidden = source.open(i)(hidden, calls.arguments[i])
        with ExitStack() as stack:
            for layer in block.layers:
                if layer.metadata.kind == "expert":
                    rows = seen.setdefault(layer.name, [])
                    stack.enter_context(layer.inputs(rows.append, token_mask=token_mask))
            hook = experts.register_forward_pre_hook(lambda m, args: arguments.append(args))
            block(hidden, calls.arguments[index])
            hook.remove()
    assert all(len(rows) <= 1 for rows in seen.values())
    return block, experts, {name: rows[0] if rows else None for name, rows in seen.items()}, arguments[0]


def by_hand(name, experts, args):
    """For each expert: which tokens it gets, its input, and the input of its down projection."""
    hidden = args[0]
    for e in range(experts.gate_up_proj.shape[0]):
        up = experts.gate_up_proj[e]
        if name == "llama4_text":
            rows = hidden.view(experts.num_experts, -1, hidden.shape[-1])[e]
            tokens = rows.abs().sum(1).nonzero()[:, 0]
            gate, up = (rows[tokens] @ up).chunk(2, dim=-1)
            yield tokens, rows[tokens], up * experts.act_fn(gate)
            continue
        tokens = torch.tensor([t for t in range(len(hidden)) if e in args[1][t].tolist()], dtype=torch.long)
        rows = hidden[tokens]
        if name == "gpt_oss":
            both = rows @ up + experts.gate_up_proj_bias[e]
            gate, up = both[:, ::2].clamp(max=experts.limit), both[:, 1::2].clamp(-experts.limit, experts.limit)
            yield tokens, rows, (up + 1) * gate * torch.sigmoid(gate * experts.alpha)
        else:
            gate, up = (rows @ up.T).chunk(2, dim=-1)
            yield tokens, rows, experts.act_fn(gate) * up


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_inputs_of_experts_are_what_they_compute_with(name, masked):
    ids = torch.randint(0, 100, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, 5:] = 0
    model = family_model(name)
    block, experts, seen, args = heard_in(model, ids, TokenMask(mask) if masked else None)
    used = 0
    with torch.no_grad():
        for e, (tokens, rows, down) in enumerate(by_hand(name, experts, args)):
            kept = mask.flatten()[tokens].bool() if masked else slice(None)
            for role, expected in (("gate", rows[kept]), ("up", rows[kept]), ("down", down[kept])):
                layer = next(x for x in block.layers if x.metadata.part.expert == e and x.role == role)
                got = seen[layer.name]
                if got is None:
                    assert len(tokens) == 0
                else:
                    used += len(got)
                    assert got.shape == expected.shape
                    # In which order an expert takes its tokens is its own affair.
                    got, expected = (x[x[:, 0].argsort()] for x in (got, expected))
                    assert torch.allclose(got, expected, atol=1e-5)
    assert used > 0


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "llama4_text"])
def test_listening_changes_nothing_and_leaves_no_trace(name):
    ids = torch.randint(0, 100, (2, 9), generator=torch.Generator().manual_seed(1))
    model = family_model(name)
    *_, experts = moe_block(model)
    implementation = getattr(getattr(experts, "config", None), "_experts_implementation", None)
    with torch.no_grad():
        before = model(ids).logits
        block = moe_block(model)[2]
        layer = next(x for x in block.layers if x.metadata.kind == "expert")
        with layer.inputs(lambda rows: None):
            during = model(ids).logits
        after = model(ids).logits
    assert torch.allclose(before, during, atol=1e-5)
    assert torch.equal(before, after)
    assert not experts._forward_pre_hooks
    assert not experts._forward_hooks
    assert getattr(getattr(experts, "config", None), "_experts_implementation", None) == implementation


def test_a_failing_forward_leaves_no_trace():
    model = family_model("mixtral")
    _, _, block, experts = moe_block(model)
    layer = next(x for x in block.layers if x.metadata.kind == "expert")
    with pytest.raises(IndexError, match="index out of range"), layer.inputs(lambda rows: None):
        model(torch.tensor([[1000]]))
    experts.act_fn = None
    with pytest.raises(TypeError, match="not callable"), layer.inputs(lambda rows: None):
        model(torch.tensor([[1, 2, 3]]))
    assert experts.config._experts_implementation != "eager"
    assert not experts._forward_hooks
    assert torch.overrides._get_current_function_mode() is None


def test_experts_whose_products_cannot_be_seen_are_refused():
    class ToyExperts(nn.Module):
        def __init__(self):
            super().__init__()
            self.down_proj = nn.Parameter(torch.randn(2, 8, 8))

        def forward(self, x):
            return torch.einsum("eoi,ti->to", self.down_proj, x)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = ToyExperts()

        def forward(self, x):
            return self.experts(x)

    with pytest.warns(UserWarning, match="No layout is known"):
        source = ModelBlockSource(nn.Sequential(Block(), Block()))
    block = source.open(0)
    with (
        pytest.raises(ModelError, match=r"got no product with down_proj of ToyExperts"),
        block.layers[0].inputs(lambda rows: None),
    ):
        block.module(torch.randn(3, 8))


@pytest.mark.parametrize("shape", [(2, 3, 5), (6, 5)])
def test_tokens_that_are_masked_out_are_left_out(shape):
    inputs = torch.arange(30.0).reshape(shape)
    token_mask = TokenMask(torch.tensor([[1, 0, 1], [0, 0, 1]]))
    assert token_mask.num_tokens == 3
    kept = token_mask.of(inputs)
    assert torch.equal(kept, inputs.reshape(6, 5)[[0, 2, 5]])
    assert token_mask.of(inputs) is kept
    other = torch.ones(4, 5)
    assert token_mask.of(other) is other
    assert torch.equal(token_mask.of(other, torch.tensor([0, 1, 2, 4])), other[:2])

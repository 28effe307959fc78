import pytest
import torch
from models import FAMILIES, tiny
from torch import nn

from hf_farms.blocks import ModelBlockSource
from hf_farms.errors import HfFarmsWarning, ModelError

ROLES = ["q", "k", "v", "o", "gate", "up", "down"]


@pytest.mark.parametrize("family", FAMILIES)
def test_known_layouts(family):
    source = ModelBlockSource(tiny(family))
    assert (len(source), source.model_type) == (3, family)
    metadata = source.metadata(2)
    assert metadata.name == "model.layers.2"
    assert [layer.role for layer in metadata.layers] == ROLES
    assert metadata.layers[1].shape == (16, 32)
    block = source.open(2)
    for view, layer in zip(block.layers, metadata.layers, strict=True):
        assert view.metadata == layer
        assert torch.equal(view.read(), source.model.get_submodule(layer.name).weight)


def test_a_model_without_its_head_has_the_same_blocks():
    source = ModelBlockSource(tiny("llama").model)
    assert source.metadata(0).layers[0].name == "layers.0.self_attn.q_proj"


def test_an_unknown_architecture_says_what_was_found():
    model = tiny("llama")
    model.config.model_type = "camelid"
    with pytest.warns(HfFarmsWarning, match=r"LlamaForCausalLM \(camelid\).*module tree: 3 blocks .*q, k, v, o, gate"):
        ModelBlockSource(model)


def test_a_block_without_one_of_its_layers_has_the_others():
    model = tiny("llama")
    model.model.layers[1].mlp.up_proj = nn.Identity()
    source = ModelBlockSource(model)
    assert [len(source.metadata(i).layers) for i in range(3)] == [7, 6, 7]


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_called_with_captured_arguments_give_the_models_output(family, ids):
    model = tiny(family)
    source = ModelBlockSource(model)
    for batch in ids:
        batch = batch if batch.ndim == 2 else batch[None]
        calls = source.capture({"input_ids": batch})
        hidden = calls.hidden
        with torch.no_grad():
            for index in range(len(source)):
                hidden = source.open(index)(hidden, calls.arguments[index])
            logits = model.lm_head(model.model.norm(hidden))
            assert torch.equal(logits, model(batch).logits)


def test_blocks_that_return_tuples_work():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, hidden_states, scale=1.0):
            return (self.linear(hidden_states) * scale,)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(Block() for _ in range(2))

        def forward(self, x):
            for scale, block in enumerate(self.blocks, 2):
                x = block(hidden_states=x, scale=scale)[0]
            return x

    model = Model()
    with pytest.warns(HfFarmsWarning, match="2 blocks at 'blocks'"):
        source = ModelBlockSource(model)
    x = torch.randn(1, 3, 4)
    calls = source.capture({"x": x})
    hidden = calls.hidden
    for index, arguments in enumerate(calls.arguments):
        hidden = source.open(index)(hidden, arguments)
    assert torch.equal(hidden, model(x))


def test_writing_and_listening():
    source = ModelBlockSource(tiny("llama"))
    block = source.open(0)
    layer = block.layers[6]
    layer.write_(torch.ones(32, 48))
    assert (source.model.model.layers[0].mlp.down_proj.weight == 1).all()
    seen = []
    calls = source.capture({"input_ids": torch.tensor([[1, 2, 3]])})
    with layer.inputs(seen.append), torch.no_grad():
        block(calls.hidden, calls.arguments[0])
    with torch.no_grad():
        block(calls.hidden, calls.arguments[0])
    assert [x.shape for x in seen] == [(1, 3, 48)]


def test_capture_leaves_no_trace_when_the_model_fails():
    model = tiny("llama")
    source = ModelBlockSource(model)
    with pytest.raises(ModelError, match=r"the model must run on its inputs, got IndexError \(index out of range"):
        source.capture({"input_ids": torch.tensor([[1000]])})
    assert all("forward" not in vars(block) for block in model.model.layers)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda layer: layer.to("meta"),
            r"weights must be loaded, got a meta tensor in model\.layers\.0\.mlp\.up_proj",
        ),
        (lambda layer: layer.weight.data.fill_(float("inf")), r"got NaN or infinity in model\.layers\.0\.mlp\.up_proj"),
        (
            lambda layer: layer.to(torch.float8_e4m3fn),
            r"weights must be float32, bfloat16 or float16, got torch\.float8",
        ),
    ],
)
def test_weights_that_cannot_be_read(change, message):
    model = tiny("llama")
    change(model.model.layers[0].mlp.up_proj)
    with pytest.raises(ModelError, match=message):
        ModelBlockSource(model).open(0).layers[5].read()


def test_a_model_without_layers_is_refused():
    with pytest.raises(ModelError, match=r"must have blocks with linear layers, got Sequential \(no config\) without"):
        ModelBlockSource(nn.Sequential(nn.LayerNorm(8)))


@pytest.mark.filterwarnings("ignore:No layout is known")
def test_a_model_that_is_itself_a_stack_has_its_children_as_blocks():
    source = ModelBlockSource(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)))
    assert [layer.name for i in range(len(source)) for layer in source.metadata(i).layers] == ["0", "2"]

"""Methods that need activations run where blocks are a chain, and are refused before any work where they are not."""

import pytest
import torch
from auto_families import build, families
from torch import nn

from hf_farms import PruneConfig, prune
from hf_farms.blocks import ModelBlockSource
from hf_farms.errors import ModelError
from hf_farms.loading.opening import load_model
from hf_farms.metrics.nll import text_nll
from hf_farms.output.checkpoint import CheckpointWriter
from hf_farms.pruning.checks import check_method

pytestmark = [
    pytest.mark.filterwarnings("ignore:No layout is known"),
    pytest.mark.filterwarnings(r"ignore:\d+ of \d+ layers are smaller than windows"),
    pytest.mark.filterwarnings("ignore::UserWarning:transformers.*"),
]


def tiny(family, kind="causal"):
    known = families(kind)
    if family not in known:
        pytest.skip(f"this transformers has no {family}")
    return build(*known[family])


def ids(shape=(2, 12), seed=1):
    return torch.randint(5, 99, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        *(("deberta", "masked"), ("deberta-v2", "masked"), ("bamba", "causal"), ("rwkv", "causal")),
        *(("xlnet", "causal"), ("xlstm", "causal"), ("cpmant", "causal"), ("openai-gpt", "causal")),
        # What else a block returns is for the next one.
        *(("hy_v4", "causal"), ("glm_moe_dsa", "causal"), ("gemma3", "causal")),
    ],
)
def test_blocks_that_return_other_things_too_compute_what_the_model_does(family, kind):
    model = tiny(family, kind)
    source = ModelBlockSource(model)
    # Not the batch that the chain was seen with.
    source.check_chain({"input_ids": ids((1, 7), 2)})
    with torch.no_grad(), source.evaluation():
        calls = source.capture({"input_ids": ids()})
        hidden = calls.hidden
        for index in range(len(source)):
            hidden = source.open(index)(hidden, calls.arguments[index])
        no_cache = {"use_cache": False} if kind == "causal" else {}
        found = source.output({"input_ids": ids()}, hidden).logits
        assert torch.allclose(found, model(input_ids=ids(), **no_cache).logits, atol=1e-5)
    report = prune(model, PruneConfig(allocation="uniform"), calibration=[ids(), ids((1, 9), 3)]).report
    assert report.sparsity == pytest.approx(0.5, abs=0.01)


def test_a_block_that_is_called_again_and_again_is_measured_in_all_calls():
    model = tiny("albert", "masked")
    layer = model.albert.encoder.albert_layer_groups[0].albert_layers[0].attention.query
    squares = []
    hook = layer.register_forward_pre_hook(lambda module, args: squares.append(args[0].flatten(0, 1).square().sum(0)))
    with torch.no_grad():
        for batch in (ids(), ids((1, 9), 3)):
            model(input_ids=batch)
    hook.remove()
    assert len(squares) == 4  # two layers of one block, two batches
    scores = layer.weight.detach().abs() * sum(squares).sqrt()
    prune(model, PruneConfig(allocation="uniform"), calibration=[ids(), ids((1, 9), 3)])
    lowest = scores.argsort(dim=1)[:, : scores.shape[1] // 2]
    assert bool((layer.weight.gather(1, lowest) == 0).all())
    assert int((layer.weight == 0).sum()) == lowest.numel()


@pytest.mark.parametrize(
    ("family", "kind", "message"),
    [
        ("hrm_text", "causal", r"must be called one after another, got \d+ calls of model\.L_module\.layers\.0"),
        ("dory", "causal", r"must be called one after another, got 2 calls of model\.layers\.2"),
        ("xlm", "causal", r"other operations between transformer\.ffns\.0 and transformer\.ffns\.1"),
        ("flaubert", "masked", r"other operations between transformer\.ffns\.0 and transformer\.ffns\.1"),
        ("reformer", "causal", r"must reproduce the activations of the model, got other values for the output of"),
        ("bart", "masked", r"must form a single stack .* got model\.decoder\.layers, model\.encoder\.layers"),
        ("zamba", "causal", r"must belong to one block to be measured, got model\.layers\.3\.shared_transf"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_blocks_that_are_no_chain_are_refused_before_anything_is_measured(
    family, kind, message, stream, tmp_path, monkeypatch
):
    def measured(*args, **kwargs):
        raise AssertionError("measured before it was refused")

    tiny(family, kind).save_pretrained(tmp_path)
    source = load_model(str(tmp_path), tokenizer=False, stream=stream).source
    monkeypatch.setattr("hf_farms.pruning.pruner.analyze", measured)
    with pytest.raises(ModelError, match=message) as raised:
        prune(source, PruneConfig(), calibration=[ids()])
    assert raised.value.hint == "Prune without activations: method 'magnitude'."
    monkeypatch.undo()
    if not stream:
        assert prune(source, PruneConfig(method="magnitude", sparsity=0.4)).report.sparsity == pytest.approx(
            0.4, abs=0.01
        )


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.state = 0.0

    def forward(self, hidden, scale=None):
        hidden = torch.tanh(self.linear(hidden)) * (1 if scale is None else scale)
        return hidden, hidden.new_zeros(2)


class Growing(Block):
    def forward(self, hidden, scale=None):
        self.state += 1.0
        return super().forward(hidden + self.state)


class Model(nn.Module):
    def __init__(self, between=lambda x: x, argument=lambda x: None, block=Block):
        super().__init__()
        self.blocks = nn.ModuleList(block() for _ in range(3))
        self.between, self.argument = between, argument

    def forward(self, x):
        for block in self.blocks:
            x = self.between(block(x, scale=self.argument(x))[0])
        return x


OTHER_OPERATIONS = r"pass their hidden states directly .* got other operations between blocks\.0 and"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Model(lambda x: 2 * x), OTHER_OPERATIONS),
        # The same tensor, with other values.
        (Model(lambda x: x.mul_(2)), OTHER_OPERATIONS),
        (Model(argument=lambda x: x.mean()), r"depend on hidden states only, got argument 'scale' of blocks\.1"),
        (Model(block=Growing), r"got other values for the output of blocks\.0 when it is called again"),
    ],
)
def test_what_else_a_model_does_is_seen(model, message):
    with pytest.raises(ModelError, match=message):
        prune(model, PruneConfig(allocation="uniform"), calibration=[{"x": torch.randn(2, 5, 8)}])


def test_work_that_only_padding_shows_is_seen():
    def hide(x):
        return x.mul_(model.mask[..., None]) if model.mask is not None else x

    class Masked(Model):
        mask = None

        def forward(self, x, attention_mask=None):
            self.mask = attention_mask
            return super().forward(x)

    model = Masked(hide)
    mask = torch.ones(2, 5, dtype=torch.int64)
    batch = {"x": torch.randn(2, 5, 8), "attention_mask": mask}
    ModelBlockSource(model).capture({"x": batch["x"]})
    mask[1, :2] = 0
    with pytest.raises(ModelError, match="got other operations between"):
        prune(model, PruneConfig(allocation="uniform"), calibration=[batch])


def test_a_module_that_is_in_the_list_twice_is_one_block():
    model = Model()
    model.blocks[1] = model.blocks[0]
    assert len(ModelBlockSource(model)) == 2
    report = prune(model, PruneConfig(allocation="uniform"), calibration=[{"x": torch.randn(2, 5, 8)}]).report
    assert report.sparsity == 0.5
    model.blocks[1], model.blocks[2] = model.blocks[2], model.blocks[0]
    with pytest.raises(ModelError, match=r"must be called one after another, got 2 calls of blocks\.0"):
        prune(model, PruneConfig(allocation="uniform"), calibration=[{"x": torch.randn(2, 5, 8)}])


def test_a_method_without_activations_prunes_shared_weights_once(tmp_path):
    model = tiny("zamba")
    model.save_pretrained(tmp_path)
    report = prune(model, PruneConfig(method="magnitude", sparsity=0.4, allocation="uniform")).report
    names = [layer.name for block in report.blocks for layer in block.layers]
    assert any(name.startswith("model.layers.1.shared_transf.") for name in names)
    assert not any(name.startswith("model.layers.3.shared_transf.") for name in names)
    weight = model.model.layers[3].shared_transf.self_attn.q_proj.weight
    assert float((weight == 0).float().mean()) == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize("stream", [False, True])
def test_it_can_be_asked_before_any_text_is_read(stream, tmp_path):
    tiny("xlm").save_pretrained(tmp_path)
    source = load_model(str(tmp_path), tokenizer=False, stream=stream).source
    check_method(source, PruneConfig(method="magnitude"))
    with pytest.raises(ModelError, match="other operations between"):
        check_method(source, PruneConfig())


@pytest.mark.parametrize("family", ["dory", "xlm", "zamba"])
def test_perplexity_from_disk_is_that_in_memory_where_blocks_are_no_chain(family, tmp_path):
    tiny(family).save_pretrained(tmp_path)
    whole, streamed = (load_model(str(tmp_path), tokenizer=False, stream=stream).source for stream in (False, True))
    options = {"context_length": 12, "max_windows": 3}
    expected = text_nll(whole.model, ids((60,)), **options)
    assert text_nll(streamed, ids((60,)), **options) == expected
    # With what was pruned, where a block has weights of another one too.
    writer = CheckpointWriter(streamed.model, tmp_path, len(streamed), records=tmp_path / "records")
    streamed.attach(writer)
    prune(streamed, PruneConfig(method="magnitude"))
    prune(whole, PruneConfig(method="magnitude"))
    assert text_nll(streamed, ids((60,)), **options) == text_nll(whole.model, ids((60,)), **options)

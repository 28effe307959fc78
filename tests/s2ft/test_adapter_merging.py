"""Adapters in plain models: merged, unmerged, switched and refused."""

import copy
import itertools
import pickle
import random
from dataclasses import replace

import pytest
import torch
from adapters import WEIGHT, adapters_of, change_slices, one_layer, same, state, trained
from families import family_model
from models import NEEDS_COMPILE, tiny
from random_adapters import random_patch
from s2ft_families import FAMILIES
from torch import nn

from hf_farms import S2FTAdapter, S2FTConfig, apply_s2ft, restore
from hf_farms.errors import ModelError
from hf_farms.s2ft.adapters.applying import is_merged
from hf_farms.s2ft.adapters.router import AdapterRouter
from hf_farms.s2ft.base_slices import put, take

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LAYOUTS = ("indexed", "permuted")
# In the normal run: every dtype, layout, side, kind of fused weight and renamed checkpoint once.
CORNER = {
    ("llama", "float32", "indexed", "all"),
    ("llama", "bfloat16", "permuted", "all"),
    ("qwen2", "float16", "permuted", "outputs"),
    ("phi3", "bfloat16", "indexed", "all"),
    ("gpt2", "float16", "permuted", "all"),
    ("gpt_neox", "float32", "permuted", "outputs"),
    ("bert", "bfloat16", "indexed", "inputs"),
    ("gemma3", "bfloat16", "permuted", "all"),
    ("t5", "float32", "indexed", "all"),
}


def grid():
    for name, dtype, layout in itertools.product(FAMILIES, DTYPES, LAYOUTS):
        if name == "olmo2" or (name == "t5" and layout == "permuted"):
            continue
        for kind in ("all", "inputs", "outputs"):
            case = (name, dtype, layout, kind)
            yield pytest.param(*case, id="-".join(case), marks=() if case in CORNER else pytest.mark.slow)


@pytest.mark.parametrize(("name", "dtype", "layout", "kind"), list(grid()))
def test_merging_gives_the_trained_model(name, dtype, layout, kind, tmp_path):
    """Through files, bit for bit; and back to the base."""
    roles = tuple(role for role in FAMILIES[name] if kind == "all" or (role in ("o", "down")) == (kind == "inputs"))
    base, model = trained(name, dtype=DTYPES[dtype], roles=roles, layout=layout)
    before, after = state(base), state(model)
    assert not same(before, after)
    S2FTAdapter.from_model(model).save_pretrained(tmp_path)
    adapter = S2FTAdapter.from_pretrained(tmp_path)
    assert adapter.dtype == DTYPES[dtype]
    adapter.merge(base)
    assert same(state(base), after)
    adapter.unmerge(base)
    assert same(state(base), before)
    restored = S2FTAdapter.from_model(restore(model))
    compared = S2FTAdapter.from_training(model, base)
    for other in (restored, compared):
        assert other.patches.keys() == adapter.patches.keys()
        for patch, again in zip(adapter.patches.values(), other.patches.values(), strict=True):
            assert (patch.side, patch.dim, patch.base_fingerprint) == (again.side, again.dim, again.base_fingerprint)
            assert torch.equal(patch.indices, again.indices)
            assert torch.equal(patch.values, again.values)


@pytest.mark.parametrize(
    "dtype",
    ["bfloat16", pytest.param("float32", marks=pytest.mark.slow), pytest.param("float16", marks=pytest.mark.slow)],
)
def test_a_thousand_switches_end_at_the_base(dtype):
    """Among adapters that overlap, on both sides of a weight."""
    base = tiny("llama", dtype=DTYPES[dtype])
    before = state(base)
    adapters, states = adapters_of(base)
    across = tiny("llama", dtype=DTYPES[dtype])
    with torch.no_grad():
        across.get_parameter(WEIGHT)[::5] += 1
    adapters.append(S2FTAdapter.from_training(across, base))
    states.append(state(across))
    assert adapters[-1].patches[WEIGHT].dim != adapters[0].patches[WEIGHT].dim
    generator = random.Random(0)
    current = generator.randrange(4)
    adapters[current].merge(base)
    for step in range(1000):
        following = generator.randrange(4)
        adapters[current].switch(base, adapters[following])
        current = following
        if step % 100 == 0:
            assert same(state(base), states[current])
    assert same(state(base), states[current])
    adapters[current].unmerge(base)
    assert same(state(base), before)
    assert not is_merged(base)


def test_a_switch_touches_only_the_channels_of_both():
    base = tiny("llama")
    one, two = one_layer([1, 5]), one_layer([5, 9])
    one.merge(base)
    with torch.no_grad():  # marks outside of both
        base.get_parameter(WEIGHT)[:, 7] = 3
        base.get_parameter("model.layers.0.mlp.down_proj.weight").zero_()
    marked = state(base)
    one.switch(base, two)
    differs = {name for name, tensor in state(base).items() if not torch.equal(tensor, marked[name])}
    assert differs == {WEIGHT}
    columns = (base.get_parameter(WEIGHT) != marked[WEIGHT]).any(0).nonzero().flatten().tolist()
    assert columns == [1, 5, 9]


def test_one_adapter_serves_two_models():
    """Each has its own base slices: an adapter without them can be unmerged."""
    adapter, other = one_layer([1, 5]), one_layer([2, 5], seed=2)
    models = [tiny("llama"), tiny("llama")]
    before = state(models[0])
    for model in models:
        adapter.merge(model)
    adapter.switch(models[0], other)
    adapter.unmerge(models[1])
    assert same(state(models[1]), before)
    assert is_merged(models[0])
    other.unmerge(models[0])
    assert same(state(models[0]), before)


def test_without_base_slices(tmp_path):
    adapter = one_layer([1, 5])
    adapter.save_pretrained(tmp_path, include_base=False)
    loaded, model = S2FTAdapter.from_pretrained(tmp_path), tiny("llama")
    before = state(model)
    assert loaded.patches[WEIGHT].base is None
    loaded.merge(model)
    copied = copy.deepcopy(model)
    for each in (model, copied, pickle.loads(pickle.dumps(copied))):
        loaded.unmerge(each)
        assert same(state(each), before)
    with torch.no_grad():
        model.get_parameter(WEIGHT)[0, 5] += 1
    with pytest.raises(ModelError, match=f"must be the base model of the adapter, got other weights in {WEIGHT}"):
        loaded.merge(model)
    saved = tiny("llama")
    saved.load_state_dict({**before, WEIGHT: state(copied)[WEIGHT]})
    loaded.merge(saved)
    forgotten = tiny("llama")
    forgotten.load_state_dict(state(saved))
    with pytest.raises(ModelError, match="base slices must be known to unmerge an adapter, got a model that was saved"):
        loaded.unmerge(forgotten)


def test_a_model_that_was_saved_with_the_adapter_merged():
    adapter, model, again = one_layer([1, 5]), tiny("llama"), tiny("llama")
    before = state(model)
    adapter.merge(model)
    again.load_state_dict(state(model))
    refused(adapter.merge, again, ModelError, r"got one that holds the adapter already, in model\.layers\.1\.mlp")
    adapter.unmerge(again)
    assert same(state(again), before)


def test_within_a_context():
    adapter, model = one_layer([1, 5]), tiny("llama")
    before = state(model)
    with adapter.on(model) as inner:
        assert inner is model
        assert torch.equal(model.get_parameter(WEIGHT)[:, [1, 5]], adapter.patches[WEIGHT].values)
    assert same(state(model), before)
    with pytest.raises(KeyError, match="inside"), adapter.on(model):
        raise KeyError("inside")
    assert same(state(model), before)
    adapter.merge(model)
    with pytest.raises(ValueError, match="must have no adapter merged into it"), adapter.on(model):
        pytest.fail("the context must not start")
    adapter.unmerge(model)
    assert same(state(model), before)


def test_gradients_and_parameters_stay():
    adapter, model = one_layer([1, 5]), tiny("llama")
    parameters = list(model.parameters())
    with adapter.on(model):
        assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))
        assert all(parameter.requires_grad for parameter in parameters)
        model(torch.tensor([[1, 2]])).logits.sum().backward()
    assert model.get_parameter(WEIGHT).grad is not None


def refused(call, model, error, match):
    """The model stays as it is, also where the first weights could be written."""
    before, marks = state(model), set(vars(model))
    with pytest.raises(error, match=match):
        call(model)
    assert same(state(model), before)
    assert set(vars(model)) == marks


def several(dtype=torch.float32):
    """An adapter with a patch in every block."""
    model = tiny("llama", dtype=dtype)
    apply_s2ft(model, S2FTConfig(budget=0.1))
    return S2FTAdapter.from_model(change_slices(model))


def test_another_base_is_refused_with_the_first_layer_that_differs():
    adapter, model = several(), tiny("llama")
    index = adapter.patches[WEIGHT].indices[0]
    with torch.no_grad():
        model.get_parameter(WEIGHT)[0, index] += 1
    match = rf"^model must be the base model of the adapter, got other weights in {WEIGHT}\.$"
    refused(adapter.merge, model, ModelError, match)
    bare = replace(adapter, patches={n: replace(patch, base=None) for n, patch in adapter.patches.items()})
    refused(bare.merge, model, ModelError, match)


def test_other_models_are_refused():
    adapter = several()
    wide = tiny("llama", intermediate_size=64)
    refused(adapter.merge, wide, ModelError, r"got \(32, 64\) instead of \(32, 48\) in model\.layers\.0")
    shallow = tiny("llama", num_hidden_layers=2)
    refused(adapter.merge, shallow, ModelError, r"every weight .* got a LlamaForCausalLM without model\.layers\.2")
    half = tiny("llama", dtype=torch.bfloat16)
    refused(adapter.merge, half, ModelError, r"dtype of the adapter \(float32\), got bfloat16 in model\.layers\.0")


def test_states_that_do_not_fit_are_refused():
    one, two, model = one_layer([1, 5]), one_layer([1, 9]), tiny("llama")
    same_channels = one_layer([1, 5], seed=2)
    refused(one.unmerge, model, ValueError, rf"must have this adapter merged into it, got other weights in {WEIGHT}")
    refused(lambda model: one.switch(model, two), model, ValueError, "must have this adapter merged into it")
    one.merge(model)
    refused(one.merge, model, ValueError, r"must have no adapter merged into it, .* Call unmerge\(model\)")
    refused(two.merge, model, ValueError, "must have no adapter merged into it")
    refused(two.unmerge, model, ValueError, "must have this adapter merged into it, got another one")
    refused(same_channels.unmerge, model, ModelError, rf"until it is unmerged, got others in {WEIGHT}, changed since")
    wrong = one_layer([1, 5], intermediate_size=64)
    refused(lambda model: one.switch(model, wrong), model, ModelError, r"got \(32, 48\) instead of \(32, 64\)")
    foreign = replace(two, patches={WEIGHT: replace(two.patches[WEIGHT], base=two.patches[WEIGHT].values)})
    refused(lambda model: one.switch(model, foreign), model, ModelError, f"got other weights in {WEIGHT}")
    with torch.no_grad():
        model.get_parameter(WEIGHT)[3, 5] += 1
    refused(one.unmerge, model, ModelError, rf"until it is unmerged, got others in {WEIGHT}, changed since the merge")
    refused(lambda model: one.switch(model, two), model, ModelError, "until it is unmerged")


def quantized(model):
    model.is_quantized = True


def offloaded(model):
    model.model.layers[0].mlp.to("meta")


def adapted(model):
    model.model.layers[0].mlp.up_proj.base_layer = nn.Linear(2, 2)


def sharded(model):
    model.get_parameter(WEIGHT).ds_shape = torch.Size([1, 1])


def tied(model):
    model.model.layers[0].mlp.down_proj.weight = model.get_parameter(WEIGHT)


def selective(model):
    apply_s2ft(model, S2FTConfig(budget=0.1))


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (quantized, ModelError, "got a quantized LlamaForCausalLM"),
        (adapted, ModelError, "must be without adapters"),
        (sharded, ModelError, f"got one that ZeRO-3 has partitioned in {WEIGHT}"),
        (tied, ModelError, f"must belong to one layer for an adapter, got one that is both .* and {WEIGHT}"),
        (selective, ValueError, "must be plain, got LlamaForCausalLM with S2FT on it already"),
    ],
)
def test_models_that_cannot_be_patched_are_refused(change, error, match):
    adapter, model = one_layer([1, 5]), tiny("llama")
    change(model)
    refused(adapter.merge, model, error, match)


def test_missing_weights_and_other_things_are_refused():
    adapter, model = one_layer([1, 5]), tiny("llama")
    offloaded(model)
    with pytest.raises(ModelError, match=r"got a meta tensor in model\.layers\.0\.mlp"):
        adapter.merge(model)
    with pytest.raises(ValueError, match=r"model must be a model in memory \(torch\.nn\.Module\), got 'llama'"):
        adapter.merge("llama")


@NEEDS_COMPILE
def test_compiled_models_are_refused():
    adapter, model = one_layer([1, 5]), tiny("llama")
    before = state(model)
    compiled = torch.compile(model, backend="eager")
    for each in (compiled, tiny("llama")):
        if each is not compiled:
            each.model.layers[0].compile(backend="eager")
        with pytest.raises(ValueError, match=r"model must not be compiled for an adapter, got one under torch"):
            adapter.merge(each)
    assert same(state(model), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("transposed", [False, True])
def test_channels_are_taken_and_put_as_bits(dtype, dim, transposed):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn((7, 11), generator=generator).to(dtype)
    matrix = matrix.mT if transposed else matrix
    twin, indices = matrix.float(), torch.tensor([0, 3, 6])
    taken = take(matrix, dim, indices)
    assert torch.equal(taken.float(), twin.index_select(dim, indices))
    version = matrix._version
    put(matrix, dim, indices, taken.flip(dim))
    assert torch.equal(matrix.float(), twin.index_copy(dim, indices, taken.float().flip(dim)))
    assert matrix._version > version


@pytest.mark.parametrize(
    ("family", "name", "layer"),
    [("llama", WEIGHT, "Linear"), ("gpt2", "transformer.h.0.mlp.c_proj.weight", "Conv1D")],
)
@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_a_side_that_is_not_that_of_the_dimension_is_refused(tmp_path, family, name, layer, side):
    """The shape does not show it: a Linear saved as if it were a Conv1D, and the other way round."""
    model, generator = family_model(family), torch.Generator().manual_seed(0)
    patch = random_patch(model, name, side=side, indices=[1, 3], scale=0.1, generator=generator)
    other = ({"inputs", "outputs"} - {side}).pop()
    S2FTAdapter(patches={name: replace(patch, side=other)}).save_pretrained(tmp_path / "adapter")
    adapter, before = S2FTAdapter.from_pretrained(tmp_path / "adapter"), state(model)
    match = f"got {other} for dimension {patch.dim} of {name}, which counts the {side} of a {layer}"
    calls = (
        lambda: adapter.merge(model),
        lambda: AdapterRouter(model, {"one": adapter}),
        lambda: adapter.export_lora(tmp_path / "lora", base=model),
    )
    for call in calls:
        with pytest.raises(ModelError, match=match):
            call()
    assert same(state(model), before)
    assert not (tmp_path / "lora").exists()


@pytest.mark.parametrize("to", ["math", None, {}])
def test_a_switch_to_what_is_no_adapter_is_refused(to):
    model, adapter = tiny("llama"), one_layer([1, 5])
    adapter.merge(model)
    before = state(model)
    with pytest.raises(ValueError, match=r"^to must be an S2FTAdapter, got .*\. Load it first: S2FTAdapter\.from_pre"):
        adapter.switch(model, to)
    assert same(state(model), before)
    adapter.unmerge(model)


@pytest.mark.parametrize("assign", [False, True])
def test_a_model_whose_base_was_loaded_again_has_no_adapter(assign):
    """The remedy of a refused unmerge."""
    model, adapter = tiny("llama"), one_layer([1, 5])
    base = state(model)
    adapter.merge(model)
    model.load_state_dict(base, assign=assign)
    with pytest.raises(ModelError, match="weights must be those of the adapter until it is unmerged"):
        adapter.unmerge(model)
    assert not is_merged(model)
    with one_layer([5, 9]).on(model):
        pass
    assert same(state(model), base)

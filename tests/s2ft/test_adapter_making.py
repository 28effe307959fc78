"""Adapters of trained models, and of pairs of models."""

import copy
import pickle

import pytest
import torch
from adapters import WEIGHT, change_slices, one_layer, same, state, trained
from families import family_model
from models import tiny

import hf_farms
from hf_farms import S2FTAdapter, S2FTCallback, S2FTConfig, apply_s2ft, restore, select_channels
from hf_farms.errors import HfFarmsWarning, ModelError
from hf_farms.s2ft.adapters.patches import fingerprint
from hf_farms.s2ft.adapters.targets import checkpoint_names, find_targets, parameter_names
from hf_farms.s2ft.selection import Selection
from hf_farms.s2ft.surgery import selective_layers, write_back

CONFIG = S2FTConfig(budget=0.1)


def test_the_public_name():
    assert hf_farms.S2FTAdapter is S2FTAdapter
    assert "S2FTAdapter" in hf_farms.__all__


def test_an_adapter_has_the_slices_before_and_after():
    base, model = tiny("llama"), tiny("llama")
    model.config._name_or_path, model.config._commit_hash = "someone/model", "abc123"
    selection = apply_s2ft(model, CONFIG)
    change_slices(model)
    adapter = S2FTAdapter.from_model(model)
    assert (adapter.base_model, adapter.base_revision, adapter.selection) == ("someone/model", "abc123", CONFIG)
    assert adapter.channels == selection.channels
    assert list(adapter.patches) == [f"{name}.weight" for name, _ in selective_layers(model)]
    for name, patch in adapter.patches.items():
        channels = torch.tensor(selection.channels[name.removesuffix(".weight")])
        assert (patch.name, patch.shape, patch.side, patch.dim) == (name, base.get_parameter(name).shape, "inputs", 1)
        assert torch.equal(patch.indices, channels)
        assert torch.equal(patch.base, base.get_parameter(name)[:, channels])
        assert torch.equal(patch.values, model.state_dict()[name][:, channels])
        assert not torch.equal(patch.values, patch.base)
        assert patch.base_fingerprint == fingerprint(patch.base) != fingerprint(patch.values)
        assert patch.values.is_contiguous()
        assert patch.base.device.type == "cpu"


def test_an_adapter_is_a_copy():
    _, model = trained()
    adapter = S2FTAdapter.from_model(model)
    values = {name: patch.values.clone() for name, patch in adapter.patches.items()}
    change_slices(model, 5)
    write_back(model)
    later = S2FTAdapter.from_model(model)
    restore(model)
    for name, patch in adapter.patches.items():
        assert torch.equal(patch.values, values[name])
        assert not torch.equal(patch.values, later.patches[name].values)
        assert torch.equal(patch.base, later.patches[name].base)


def test_slices_have_the_dtype_of_the_model():
    """Slices of a model that was cast are those of the base in that dtype."""
    base, model = trained(dtype=torch.float32)
    adapter = S2FTAdapter.from_model(model.to(torch.bfloat16))
    assert adapter.dtype == torch.bfloat16
    base.to(torch.bfloat16)
    adapter.merge(base)
    assert same(state(base), state(model))


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_copies_know_their_base(copied):
    base, model = trained()
    for each in (copied(model), copied(restore(copied(model)))):
        adapter = S2FTAdapter.from_model(each)
        before = state(base)
        with adapter.on(base):
            assert same(state(base), state(each))
        assert same(state(base), before)


@pytest.mark.filterwarnings("ignore:the base of the new adapter")
def test_a_second_training_has_its_own_base():
    model = tiny("llama")
    apply_s2ft(model, CONFIG)
    once = state(restore(change_slices(model)))
    first = S2FTAdapter.from_model(model)
    apply_s2ft(model, S2FTConfig(budget=0.1, seed=1))
    second = S2FTAdapter.from_model(change_slices(model))
    middle = tiny("llama")
    middle.load_state_dict(once)
    second.merge(middle)
    assert same(state(middle), state(model))
    assert first.selection != second.selection


def test_plain_models_have_no_adapter():
    with pytest.raises(ValueError, match="must have S2FT on it, or have been restored from it, got a plain Llama"):
        S2FTAdapter.from_model(tiny("llama"))
    with pytest.raises(ValueError, match=r"model must be a model in memory \(torch\.nn\.Module\), got 'llama'"):
        S2FTAdapter.from_model("llama")


def changed(name, place, amount=1.0):
    model = tiny("llama")
    with torch.no_grad():
        model.get_parameter(name)[place] += amount
    return model


@pytest.mark.parametrize(
    ("place", "side", "dim", "indices"),
    [
        ((slice(None), [3, 7]), "inputs", 1, [3, 7]),
        ([2], "outputs", 0, [2]),
        (([1, 2], [5, 5]), "inputs", 1, [5]),  # some weights of one channel
        (([4, 4], [5, 6]), "outputs", 0, [4]),
        ((4, 5), "inputs", 1, [5]),  # 32 weights and not 48
        ((slice(0, 20), slice(0, 9)), "inputs", 1, list(range(9))),
    ],
)
def test_the_side_with_fewer_weights_is_taken(place, side, dim, indices):
    base, model = tiny("llama"), changed(WEIGHT, place)
    adapter = S2FTAdapter.from_training(model, base)
    patch = adapter.patches[WEIGHT]
    assert (patch.side, patch.dim, patch.indices.tolist()) == (side, dim, indices)
    assert (adapter.selection, adapter.channels) == (None, {})
    adapter.merge(base)
    assert same(state(base), state(model))


def test_zeros_of_another_sign_are_changes():
    base, model = tiny("llama"), tiny("llama")
    with torch.no_grad():
        base.get_parameter(WEIGHT)[:, 3], model.get_parameter(WEIGHT)[:, 3] = 0.0, -0.0
    adapter = S2FTAdapter.from_training(model, base)
    assert adapter.patches[WEIGHT].indices.tolist() == [3]
    adapter.merge(base)
    assert same(state(base), state(model))


def test_conv1d_counts_inputs_along_its_first_dimension():
    base, model = family_model("gpt2"), family_model("gpt2")
    name = "transformer.h.0.mlp.c_proj.weight"
    with torch.no_grad():
        model.get_parameter(name)[[1, 8]] += 1
    patch = S2FTAdapter.from_training(model, base).patches[name]
    assert (patch.side, patch.dim, patch.indices.tolist()) == ("inputs", 0, [1, 8])


def test_changes_outside_of_channels_are_refused_with_their_share():
    base = tiny("llama")
    with pytest.raises(ModelError, match="must differ from its base, got two LlamaForCausalLM with equal weights"):
        S2FTAdapter.from_training(tiny("llama"), base)
    one = changed(WEIGHT, (slice(None), [3]))
    with torch.no_grad():
        one.get_parameter("model.norm.weight")[:8] += 1
    match = (
        r"in whole channels of linear layers only, got 20\.0% of the changed weights outside .*, in model\.norm\.weight"
    )
    with pytest.raises(ModelError, match=match):
        S2FTAdapter.from_training(one, base)
    # A diagonal: every input and every output.
    diagonal = changed(WEIGHT, (range(32), range(32)))
    with torch.no_grad():
        diagonal.get_parameter(WEIGHT)[0] += 1
    with pytest.raises(ModelError, match=rf"got 100\.0% of the changed weights outside of such channels, in {WEIGHT}"):
        S2FTAdapter.from_training(diagonal, base)


def test_two_models_of_different_trainings_are_no_adapter():
    base, other = tiny("llama"), tiny("llama")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 1
    # Tied weights, which no adapter can have, are not the reason.
    for model in (base, other):
        model.lm_head.weight = model.model.embed_tokens.weight
    number = len(list(base.parameters()))
    match = rf"got changes in almost all channels of {number} of {number} tensors: the difference is no adapter"
    with pytest.raises(ModelError, match=match):
        S2FTAdapter.from_training(other, base)


def test_other_pairs_of_models_are_refused():
    base = tiny("llama")
    with pytest.raises(ModelError, match=r"must have the same weights by name, .* which differ in model\.layers\.2"):
        S2FTAdapter.from_training(tiny("llama", num_hidden_layers=2), base)
    with pytest.raises(ModelError, match=r"one shape and dtype, got \(64, 32\) torch\.float32 and \(48, 32\)"):
        S2FTAdapter.from_training(tiny("llama", intermediate_size=64), base)
    with pytest.raises(ModelError, match=r"one shape and dtype, got .* torch\.bfloat16 and .* torch\.float32"):
        S2FTAdapter.from_training(tiny("llama", dtype=torch.bfloat16), base)
    selective = tiny("llama")
    apply_s2ft(selective, CONFIG)
    for pair in ((selective, base), (base, selective)):
        with pytest.raises(ValueError, match=r"with S2FT on it already\. Call restore\(model\) first"):
            S2FTAdapter.from_training(*pair)


def test_tied_weights_are_refused():
    base, model = (tiny("llama", tie_word_embeddings=True) for _ in range(2))
    with torch.no_grad():
        model.lm_head.weight[3] += 1
    with pytest.raises(ModelError, match=r"got one that is both model\.embed_tokens\.weight and lm_head\.weight"):
        S2FTAdapter.from_training(model, base)


@pytest.mark.parametrize(
    ("family", "name"), [("llama", "model.embed_tokens.weight"), ("gpt2", "transformer.wpe.weight")]
)
def test_rows_of_embeddings_are_no_channels(family, name):
    base, model = family_model(family), family_model(family)
    with torch.no_grad():
        model.get_parameter(name)[[2, 5]] += 1
    match = rf"of linear layers only, got 100\.0% of the changed weights outside of such channels, in {name}"
    with pytest.raises(ModelError, match=match):
        S2FTAdapter.from_training(model, base)


@pytest.mark.parametrize("tied", ["model", "base"])
def test_models_with_other_ties_are_refused(tied):
    """A tied lm_head is compared once, so that another one of the base would be lost."""
    models = {name: tiny("llama", tie_word_embeddings=name == tied) for name in ("model", "base")}
    with torch.no_grad():
        models["model"].get_parameter(WEIGHT)[:, 3] += 1
    other = ({"model", "base"} - {tied}).pop()
    match = rf"a {tied} that ties lm_head\.weight and model\.embed_tokens\.weight and a {other} that does not"
    with pytest.raises(ModelError, match=match):
        S2FTAdapter.from_training(**models)


def test_names_are_those_of_a_checkpoint(tmp_path):
    """Renamed on loading, and without the prefix of the base model, as in files of GPT-2."""
    model = family_model("gemma3")
    name = "model.language_model.layers.0.mlp.down_proj.weight"
    stored = "language_model.model.layers.0.mlp.down_proj.weight"
    assert checkpoint_names(model, [name]) == {name: stored}
    assert parameter_names(model, [stored]) == {stored: name}
    assert parameter_names(model, [name]) == {name: name}
    gpt2 = family_model("gpt2")
    assert parameter_names(gpt2, ["h.0.mlp.c_proj.weight"]) == {
        "h.0.mlp.c_proj.weight": "transformer.h.0.mlp.c_proj.weight"
    }
    with pytest.raises(ModelError, match=r"got a GPT2LMHeadModel without h\.7\.mlp"):
        parameter_names(gpt2, ["h.7.mlp.c_proj.weight"])


def test_targets_are_modules_with_their_parameters():
    model = family_model("gemma3")
    selection = select_channels(model, CONFIG)
    apply_s2ft(model, selection=Selection(CONFIG, selection.channels))
    adapter, plain = S2FTAdapter.from_model(model), family_model("gemma3")
    targets = find_targets(plain, adapter)
    assert list(targets) == list(adapter.patches)
    for module, parameter in targets.values():
        assert module.weight is parameter


def test_one_weight_with_several_layers():
    """q, k and v of Phi-3 lie in one weight: one patch with the channels of all."""
    base, model = trained("phi3", roles=("q", "k", "v"))
    adapter = S2FTAdapter.from_model(model)
    patch = adapter.patches["model.layers.0.self_attn.qkv_proj.weight"]
    assert len(adapter) == 2
    assert len(adapter.channels) == 6
    assert len(patch.indices) == sum(len(c) for name, c in adapter.channels.items() if ".0." in name)
    adapter.merge(base)
    assert same(state(base), state(model))


def test_an_adapter_of_one_layer():
    assert list(one_layer([1]).patches) == [WEIGHT]


def test_a_model_with_a_merged_adapter_cannot_be_trained():
    model, adapter = tiny("llama"), one_layer([1])
    before = state(model)
    with adapter.on(model):
        merged = state(model)
        for call in (lambda: apply_s2ft(model, CONFIG), lambda: S2FTCallback(CONFIG)._apply(model)):
            with pytest.raises(
                ValueError, match=r"must have no adapter merged into it for S2FT, .* Call unmerge\(model\)"
            ):
                call()
        assert same(state(model), merged)
    assert same(state(model), before)
    adapter.merge(model)
    model.load_state_dict(before)
    apply_s2ft(model, CONFIG)


@pytest.mark.parametrize("through", ["function", "callback"])
def test_a_training_on_top_of_another_names_no_base(through):
    def apply():
        return apply_s2ft(model, CONFIG) if through == "function" else S2FTCallback(CONFIG)._apply(model)

    model = tiny("llama")
    model.config._name_or_path, model.config._commit_hash = "ada/base", "0" * 40
    apply()
    restore(model)
    apply()  # nothing was trained
    assert S2FTAdapter.from_model(change_slices(model)).base_model == "ada/base"
    first = S2FTAdapter.from_model(restore(model))
    middle = state(model)
    with pytest.warns(HfFarmsWarning, match="with an earlier training of S2FT in its weights") as caught:
        apply()
    assert len(caught) == 1
    assert caught[0].filename == __file__ or through == "callback"
    second = S2FTAdapter.from_model(change_slices(model, 2))
    assert (second.base_model, second.base_revision) == (None, None)
    restore(model)
    assert S2FTAdapter.from_model(model).base_model is None
    second.unmerge(model)
    assert same(state(model), middle)
    with pytest.warns(HfFarmsWarning, match="names no base model"):
        apply()  # the first training is still there
    plain = tiny("llama")
    with pytest.raises(ModelError, match="must be the base model of the adapter"):
        second.merge(plain)
    first.unmerge(restored := restore(model))
    assert same(state(restored), state(plain))

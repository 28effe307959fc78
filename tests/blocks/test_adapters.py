"""Adapters of PEFT on a frozen base: the spectrum of the weight that they make, without changing the model.

Every kind of adapter that PEFT has is tried.
"""

import inspect
import warnings

import pytest
import torch
import transformers
from families import family_model

from hf_farms import FarmsLRCallback, FarmsLRConfig, PruneConfig, prune
from hf_farms.blocks import ModelBlockSource
from hf_farms.errors import HfFarmsWarning, ModelError
from hf_farms.spectra.analysis import analyze

peft = pytest.importorskip("peft", reason="peft is not installed")

# Between PEFT 0.21 and transformers 5.23.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.usefixtures("undrawn"),
]


def adapted(name="llama", **options):
    model = family_model(name)
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "down_proj"], **options})
    wrapped = peft.get_peft_model(model, config)
    torch.manual_seed(1)
    for key, parameter in wrapped.named_parameters():
        if "lora_" in key:
            torch.nn.init.normal_(parameter, std=0.2)
    return wrapped


def layers_of(model):
    source = ModelBlockSource(model)
    return {(index, layer.metadata.role): layer for index in range(len(source)) for layer in source.open(index).layers}


def test_the_sum_is_measured_and_nothing_changed():
    model = adapted()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = {key: layer.read() for key, layer in layers_of(model).items()}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    merged = layers_of(model.merge_and_unload())
    assert found.keys() == merged.keys()
    for key, weight in found.items():
        assert torch.allclose(weight, merged[key].read(), atol=1e-6)


def test_the_report_equals_that_of_the_merged_model():
    model = adapted()
    alphas = [block.alpha for block in analyze(model).blocks]
    plain = [block.alpha for block in analyze(family_model("llama")).blocks]
    assert alphas != pytest.approx(plain, abs=1e-3)
    assert alphas == pytest.approx([block.alpha for block in analyze(model.merge_and_unload()).blocks], rel=1e-5)


def test_merged_and_disabled_adapters_are_not_counted_twice():
    model = adapted()
    expected = layers_of(model)[0, "q"].read()
    model.merge_adapter()
    assert torch.allclose(layers_of(model)[0, "q"].read(), expected, atol=1e-6)
    model.unmerge_adapter()
    with model.disable_adapter():
        base = layers_of(model)[0, "q"].read()
    assert torch.allclose(base, family_model("llama").model.layers[0].self_attn.q_proj.weight, atol=1e-6)


def test_adapters_on_fused_and_transposed_weights():
    model = adapted("gpt2", target_modules=["c_attn"], fan_in_fan_out=True)
    found = {role: layers_of(model)[0, role].read() for role in "qkv"}
    merged = layers_of(model.merge_and_unload())
    for role in "qkv":
        assert torch.allclose(found[role], merged[0, role].read(), atol=1e-6)


def test_adapters_on_the_parameters_of_experts_are_refused_and_not_overlooked():
    with pytest.raises(ModelError, match=r"must be on linear layers, got one on the parameters of mlp\.experts"):
        analyze(adapted("mixtral", target_modules=[], target_parameters=["mlp.experts.down_proj"]))


def test_adapted_layers_are_not_overwritten():
    layer = layers_of(adapted())[0, "q"]
    with pytest.raises(ModelError, match="weights must have no adapter to be overwritten, got one"):
        layer.write_(layer.read())


def test_a_model_with_adapters_is_not_pruned_and_nothing_of_it_is_changed():
    """Also where the adapters are not on the first layers."""
    model = adapted(target_modules=["down_proj"])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ModelError, match=r"must be without adapters, got one in .*layers\.0\.mlp\.down_proj") as caught:
        prune(model, PruneConfig(method="magnitude", sparsity=0.5))
    assert caught.value.hint == "Merge it first: model = model.merge_and_unload()."
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def mapping():
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    return {kind.value: PEFT_TYPE_TO_CONFIG_MAPPING[kind] for kind in PEFT_TYPE_TO_TUNER_MAPPING}


# What the small model needs that the defaults are too large for, and what has no default.
OPTIONS = {
    "IA3": {"feedforward_modules": ["down_proj"]},
    "OFT": {"oft_block_size": 8},
    "BOFT": {"boft_block_size": 4},
    "ADALORA": {"total_step": 10},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 1, "target_modules": "self_attn"},
    "VBLORA": {"vector_length": 16, "num_vectors": 8},
    "C3A": {"block_size": 16},
    "MISS": {"r": 8},
    "SHIRA": {"r": 4},
    "ROAD": {"group_size": 16},
    "WAVEFT": {"n_frequency": 100},
    "CPT": {"cpt_token_ids": [1, 2], "cpt_mask": [1, 1], "cpt_tokens_type_mask": [1, 1]},
}
# Adapters that are in what is measured, those that are not, and what is on no layer.
MEASURED = {
    *("LORA", "ADALORA", "ADAMSS", "BOFT", "C3A", "DEFT", "DELORA", "FOURIERFT", "FROD", "GRALORA", "HIRA", "HRA"),
    *("LOHA", "LOKR", "MISS", "OFT", "OSF", "PEANUT", "PSOFT", "PVERA", "RANDLORA", "SHIRA", "SUPERTUNING"),
    *("TINYLORA", "UNILORA", "VBLORA", "VERA", "WAVEFT"),
}
LEFT_OUT = {"BEFT", "GLORA", "IA3", "LILY", "LN_TUNING", "POLY", "ROAD", "SHADOW", "TRAINABLE_TOKENS", "XLORA"}
PROMPTS = {
    *("ADAPTION_PROMPT", "CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"),
    "PROMPT_TUNING",
}
SIDES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}


def small():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=100, num_hidden_layers=2, use_cache=False, **SIDES)
    return transformers.LlamaForCausalLM(config)


def tuned(kind, folder, **more):
    """A model with adapters of this kind, in the mode of training, with weights that are not those of the start."""
    parameters = inspect.signature(mapping()[kind]).parameters
    common = {"target_modules": ["q_proj", "down_proj"], "num_virtual_tokens": 4, "task_type": "CAUSAL_LM"}
    options = {name: value for name, value in common.items() if name in parameters} | OPTIONS.get(kind, {}) | more
    if kind == "XLORA":
        peft.get_peft_model(small(), peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(folder)
        options = {"task_type": "CAUSAL_LM", "hidden_size": 64, "adapters": {"a": str(folder), "b": str(folder)}}
    model = peft.get_peft_model(small(), mapping()[kind](**options))
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.train()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", sorted(mapping()))
def test_every_kind_of_adapter_is_measured_as_it_is_merged(kind, tmp_path):
    """Bit by bit; where PEFT computes no weight, the base weight with one warning that says so."""
    if kind not in MEASURED | LEFT_OUT | PROMPTS:
        pytest.skip("another version of PEFT has it")
    model = tuned(kind, tmp_path)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = analyze(model)
    said = [str(warning.message) for warning in caught if issubclass(warning.category, HfFarmsWarning)]
    found = {key: layer.read() for key, layer in layers_of(model).items()}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    base = {key: layer.read() for key, layer in layers_of(small()).items()}
    assert found.keys() == base.keys()
    # PEFT 0.19 computes none for OSF either.
    mergeable = all(hasattr(m, "get_delta_weight") for m in model.modules() if hasattr(m, "adapter_layer_names"))
    left_out = kind in LEFT_OUT or (kind == "OSF" and not mergeable)
    if left_out or kind in PROMPTS:
        assert all(torch.equal(found[key], base[key]) for key in base)
        assert len(said) == left_out
        assert all(f"without the adapters: {kind} (" in text and text in report.notes for text in said)
        return
    assert said == []
    merged = {key: layer.read() for key, layer in layers_of(model.eval().merge_and_unload()).items()}
    assert all(torch.equal(found[key], merged[key]) for key in base)
    changed = {role for _, role in base if not torch.equal(found[0, role], base[0, role])}
    assert changed == {"q", "down"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["LORA", "OFT", "LOHA", "HRA", "MISS"])
def test_merged_disabled_and_several_adapters_of_every_kind(kind, tmp_path):
    model = tuned(kind, tmp_path)
    one = layers_of(model)[0, "q"].read()
    model.add_adapter("second", model.peft_config["default"])
    assert torch.equal(layers_of(model)[0, "q"].read(), one)
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if ".second" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.base_model.set_adapter(["default", "second"])
    both = layers_of(model)[0, "q"].read()
    assert not torch.equal(both, one)
    with model.disable_adapter():
        assert torch.equal(layers_of(model)[0, "q"].read(), small().model.layers[0].self_attn.q_proj.weight)
    model.merge_adapter()
    assert torch.equal(layers_of(model)[0, "q"].read(), both)


@pytest.mark.filterwarnings("ignore")
def test_variants_of_lora_are_measured_as_they_are_merged():
    model = adapted(use_dora=True)
    found = {key: layer.read() for key, layer in layers_of(model).items()}
    merged = layers_of(model.merge_and_unload())
    assert all(torch.equal(weight, merged[key].read()) for key, weight in found.items())


@pytest.mark.filterwarnings("ignore")
def test_adapters_on_adapters_are_all_measured():
    model = peft.PeftMixedModel(small(), peft.LoHaConfig(r=4, target_modules=["q_proj"]), "first")
    model.add_adapter("second", peft.LoraConfig(r=4, target_modules=["q_proj", "k_proj"]))
    model.set_adapter(["first", "second"])
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "hada_" in name or "lora_" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    found = {key: layer.read() for key, layer in layers_of(model).items()}
    merged = layers_of(model.merge_and_unload())
    assert found.keys() == merged.keys()
    for key, weight in found.items():
        assert torch.allclose(weight, merged[key].read(), atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_modules_that_are_saved_whole_count_once_and_as_they_are_trained():
    model = adapted(modules_to_save=["up_proj", "lm_head"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.mul_(2)
    found, base = layers_of(model), layers_of(family_model("llama"))
    assert found.keys() == base.keys()
    assert torch.equal(found[0, "up"].read(), 2 * base[0, "up"].read())
    with model.disable_adapter():
        assert torch.equal(layers_of(model)[0, "up"].read(), base[0, "up"].read())
    report = analyze(model, outside=True)
    assert len(report.blocks[0].layers) == 7


@pytest.mark.filterwarnings("ignore")
def test_adapters_on_embeddings_are_measured_and_those_on_norms_are_none_of_a_layer():
    model = adapted(target_modules=["embed_tokens"])
    embedding = next(view for view in ModelBlockSource(model).outside if view.role == "embedding")
    found = embedding.read()
    merged = model.merge_and_unload().get_input_embeddings().weight
    assert torch.equal(found, merged)
    assert not torch.equal(found, family_model("llama").get_input_embeddings().weight)


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_that_fails_on_its_weight_is_a_warning():
    model = adapted(use_dora=True)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    layer.lora_A["default"].weight.data = layer.lora_A["default"].weight.data[:, :3]
    with pytest.warns(HfFarmsWarning, match=r"base weights, without the adapters: LORA \(RuntimeError: ") as caught:
        analyze(model)
    assert len(caught) == 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["IA3", "OFT", "LN_TUNING"])
def test_adapters_of_every_kind_are_trained_with_layer_wise_rates(kind, tmp_path):
    model = tuned(kind, tmp_path, **({"target_modules": ["input_layernorm"]} if kind == "LN_TUNING" else {}))
    rows = [{"input_ids": torch.arange(8) + i, "labels": torch.arange(8) + i} for i in range(8)]
    args = transformers.TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=4, use_cpu=True, disable_tqdm=True, save_strategy="no"
    )
    callback = FarmsLRCallback(FarmsLRConfig(start=0, interval=1, shrink=False))
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    transformers.Trainer(model=model, args=args, train_dataset=rows, callbacks=[callback]).train()
    assert callback.memory["step"] == 1
    after = dict(model.named_parameters())
    assert any(not torch.equal(value, after[name]) for name, value in before.items())

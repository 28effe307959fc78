"""LoRA on a frozen base: the spectrum of W + BA, without changing the model."""

import pytest
import torch
from families import family_model

from hf_farms.blocks import ModelBlockSource
from hf_farms.errors import ModelError
from hf_farms.spectra.analysis import analyze

peft = pytest.importorskip("peft", reason="peft is not installed")

# Between PEFT 0.21 and transformers 5.23.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


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


def test_other_kinds_of_adapters_are_refused():
    with pytest.raises(ModelError, match=r"adapters must be plain LoRA, got a variant of it \(such as DoRA\) in") as e:
        analyze(adapted(use_dora=True))
    assert e.value.hint == "Merge it first: model.merge_and_unload()."


def test_adapters_on_the_parameters_of_experts_are_refused_and_not_overlooked():
    with pytest.raises(ModelError, match=r"must be on linear layers, got one on the parameters of mlp\.experts"):
        analyze(adapted("mixtral", target_modules=[], target_parameters=["mlp.experts.down_proj"]))


def test_adapted_layers_are_not_overwritten():
    layer = layers_of(adapted())[0, "q"]
    with pytest.raises(ModelError, match="weights must be plain to be overwritten, got an adapter"):
        layer.write_(layer.read())

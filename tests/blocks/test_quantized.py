"""Weights that a library has quantized are measured as that library dequantizes them."""

import json

import pytest
import torch
import transformers
from families import family_model
from safetensors.torch import load_file, save_file

from hf_farms.blocks import ModelBlockSource
from hf_farms.loading.opening import open_model
from hf_farms.spectra.analysis import analyze

# What the libraries say of each other while they are imported and while they load.
pytestmark = pytest.mark.filterwarnings("ignore")


def quantized(tmp_path, config):
    dense = family_model("llama")
    dense.save_pretrained(tmp_path / "dense")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense", quantization_config=config)
    return dense, model


def check(dense, model, tmp_path, error):
    weight = dense.model.layers[1].mlp.up_proj.weight
    found = ModelBlockSource(model).open(1).layers[5].read()
    assert found.dtype.is_floating_point
    assert 0 < (found.float() - weight).norm() / weight.norm() < error
    in_memory = analyze(model)
    model.save_pretrained(tmp_path / "quantized")
    assert analyze(open_model(tmp_path / "quantized")).blocks == in_memory.blocks


@pytest.mark.parametrize(("bits", "error"), [(8, 0.02), (4, 0.25)])
def test_bitsandbytes(bits, error, tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    config = transformers.BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    check(*quantized(tmp_path, config), tmp_path, error)


def test_torchao(tmp_path):
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    config = transformers.TorchAoConfig(quantization.Int8WeightOnlyConfig())
    check(*quantized(tmp_path, config), tmp_path, 0.02)


def test_compressed_tensors(tmp_path):
    """int8 with a scale for each row, as that library writes it."""
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    dense = family_model("llama")
    dense.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for name in [name for name, weight in tensors.items() if ".layers." in name and weight.ndim == 2]:
        scale = tensors[name].abs().amax(dim=1, keepdim=True) / 127
        tensors[f"{name}_scale"] = scale
        tensors[name] = (tensors[name] / scale).round().to(torch.int8)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {
        **{"quant_method": "compressed-tensors", "format": "int-quantized", "quantization_status": "compressed"},
        **{"config_groups": {"all": {"targets": ["Linear"], "weights": weights}}, "ignore": ["lm_head"]},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    found, weight = open_model(tmp_path).open(1).layers[5].read(), dense.model.layers[1].mlp.up_proj.weight
    assert 0 < (found - weight).norm() / weight.norm() < 0.02


def test_dynamically_quantized_tensors_of_torch():
    model = family_model("llama")
    layer = model.model.layers[0].mlp.up_proj
    dense = layer.weight.detach().clone()
    layer.weight = torch.nn.Parameter(
        torch.quantize_per_tensor(dense, scale=0.01, zero_point=0, dtype=torch.qint8), requires_grad=False
    )
    found = ModelBlockSource(model).open(0).layers[5].read()
    assert torch.allclose(found, dense, atol=0.006)

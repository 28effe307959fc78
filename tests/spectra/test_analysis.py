import math

import pytest
import torch
from models import tiny

from hf_farms.config import FarmsConfig
from hf_farms.errors import ModelError
from hf_farms.spectra.analysis import analyze
from hf_farms.spectra.spectrum import layer_spectrum


def test_every_layer_gets_one_window_size_and_its_own_spectrum(llama):
    report = analyze(llama)
    assert [block.name for block in report.blocks] == [f"model.layers.{i}" for i in range(3)]
    assert report.window_rows == 16
    layers = [layer for block in report.blocks for layer in block.layers]
    assert {layer.window_shape for layer in layers} == {(16, 16)}
    assert {layer.role for layer in layers} == {"q", "k", "v", "o", "gate", "up", "down"}
    weight = llama.get_submodule(layers[3].name).weight
    alone = layer_spectrum(weight, FarmsConfig(window_rows=16))
    assert (layers[3].alpha, layers[3].alpha_stderr) == (alone.alpha, alone.alpha_stderr)


def test_block_score_is_the_mean_over_layers(llama):
    block = analyze(llama).blocks[1]
    assert block.alpha == pytest.approx(sum(layer.alpha for layer in block.layers) / 7)
    assert block.alpha_stderr == pytest.approx(math.sqrt(sum(layer.alpha_stderr**2 for layer in block.layers)) / 7)


def test_whole_matrices_have_no_error_and_the_report_says_so(llama):
    report = analyze(llama, FarmsConfig(window_rows=None))
    assert all(block.alpha_stderr is None for block in report.blocks)
    assert "21 of 21 layers have a single window" in report.notes[0]


def test_lowered_windows_are_reported(llama):
    report = analyze(llama, FarmsConfig(window_rows=32))
    assert "6 of 21 layers are smaller than windows of 32 rows" in report.notes[0]
    assert "model.layers.0.self_attn.k_proj" in report.notes[0]


def test_a_block_of_zeros_has_no_score_and_the_report_says_so(llama):
    for parameter in llama.model.layers[1].parameters():
        parameter.data.zero_()
    report = analyze(llama)
    assert report.blocks[1].alpha is None
    assert any("7 layers have no tail to fit" in note for note in report.notes)
    assert report.from_json(report.to_json()) == report


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_measured_exactly(dtype):
    half = tiny("llama", dtype=dtype)
    full = tiny("llama", dtype=dtype).float()
    assert [b.alpha for b in analyze(half).blocks] == [b.alpha for b in analyze(full).blocks]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_in_a_weight_names_the_tensor(llama, value):
    llama.model.layers[2].mlp.up_proj.weight.data[0, 0] = value
    with pytest.raises(ModelError, match=r"NaN or infinity in model\.layers\.2\.mlp\.up_proj\.weight"):
        analyze(llama)


def test_progress_counts_blocks(llama):
    seen = []
    analyze(llama, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]

import math
import warnings

import pytest
import torch
from models import tiny
from torch import nn

from hf_farms.config import FarmsConfig
from hf_farms.errors import HfFarmsWarning, ModelError
from hf_farms.processes import assign_to_ranks
from hf_farms.spectra.analysis import analyze
from hf_farms.spectra.spectrum import layer_spectrum


def layers_of(report):
    return [layer for block in report.blocks for layer in block.layers]


def test_every_layer_gets_one_window_size_and_its_own_spectrum(llama):
    report = analyze(llama)
    assert [block.name for block in report.blocks] == [f"model.layers.{i}" for i in range(3)]
    assert report.window_rows == 16
    layers = layers_of(report)
    assert {layer.window_shape for layer in layers} == {(16, 16)}
    assert {layer.role for layer in layers} == {"q", "k", "v", "o", "gate", "up", "down"}
    for layer in layers:
        alone = layer_spectrum(llama.get_submodule(layer.name).weight, FarmsConfig(window_rows=16))
        assert (layer.alpha, layer.alpha_stderr) == pytest.approx((alone.alpha, alone.alpha_stderr), rel=1e-6)


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


class Uneven(nn.Module):
    """Two blocks, each with one matrix much smaller than the others."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(128, 256), "down": nn.Linear(256, 128), "gate": nn.Linear(128, 4)})
            for _ in range(2)
        )


@pytest.mark.filterwarnings("ignore:No layout is known")
def test_layers_smaller_than_an_automatic_window_are_left_out_with_a_warning():
    message = r"2 of 6 layers are smaller than windows of 32 rows and were left out, first layers\.0\.gate"
    with pytest.warns(HfFarmsWarning, match=message):
        report = analyze(Uneven())
    assert [layer.role for layer in report.blocks[0].layers] == ["up", "down"]
    assert len(report.notes) == 1


class SpectralConvolution(nn.Module):
    """A Fourier layer: a complex weight `(in, out, *modes)`."""

    def __init__(self, width, *modes):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width, *modes, dtype=torch.complex64))


def neural_operator(width=16, modes=(4, 3)):
    """Blocks of a Fourier neural operator (Li et al., arXiv 2010.08895): spectral beside pointwise convolution."""
    torch.manual_seed(0)
    model = nn.Module()
    model.lifting, model.projection = nn.Conv2d(1, width, 1), nn.Conv2d(width, 1, 1)
    model.blocks = nn.ModuleList(
        nn.ModuleDict({"spectral": SpectralConvolution(width, *modes), "skip": nn.Conv2d(width, width, 1)})
        for _ in range(3)
    )
    return model


def test_fourier_layers_of_a_neural_operator_are_measured():
    model = neural_operator()
    with pytest.warns(HfFarmsWarning, match=r"3 blocks at 'blocks' with the layers spectral, skip"):
        report = analyze(model)
    for block, module in zip(report.blocks, model.blocks, strict=True):
        spectral, skip = block.layers
        weight = module["spectral"].weight.detach()
        assert spectral.shape == (16, 16, 4, 3)
        assert (spectral.num_windows, spectral.window_shape) == (12, (16, 16))
        modes = torch.linalg.svdvals(weight.movedim((0, 1), (2, 3)).to(torch.complex128)).square().flatten()
        assert spectral.frobenius_norm_sq == pytest.approx(modes.sum().item(), rel=1e-6)
        assert spectral.spectral_norm == pytest.approx(modes.max().item(), rel=1e-6)
        assert block.alpha == pytest.approx((spectral.alpha + skip.alpha) / 2)
    assert report.from_json(report.to_json()) == report


def test_nan_in_a_complex_weight_names_the_tensor():
    model = neural_operator()
    model.blocks[1]["spectral"].weight.data[0, 0, 0, 0] = complex(0, math.nan)
    with (
        pytest.warns(HfFarmsWarning, match="No layout is known"),
        pytest.raises(ModelError, match=r"NaN or infinity in blocks\.1\.spectral"),
    ):
        analyze(model)


@pytest.mark.filterwarnings("ignore:No layout is known")
def test_an_aspect_ratio_that_fits_nowhere_names_the_layer():
    with pytest.raises(ModelError, match=r"0: aspect_ratio must be at most 5 for a weight of 4 x 5, got 20"):
        analyze(nn.Sequential(nn.Linear(5, 4)), FarmsConfig(aspect_ratio=20))


def test_embeddings_and_head_are_measured_only_when_asked_for(llama):
    assert analyze(llama).outside == ()
    report = analyze(llama, outside=True)
    assert [(layer.name, layer.role) for layer in report.outside] == [
        ("model.embed_tokens", "embedding"),
        ("lm_head", "head"),
    ]
    assert [b.alpha for b in report.blocks] == [b.alpha for b in analyze(llama).blocks]
    assert report.from_json(report.to_json()) == report


def test_a_block_of_zeros_has_no_score_and_the_report_says_so(llama):
    for parameter in llama.model.layers[1].parameters():
        parameter.data.zero_()
    report = analyze(llama)
    assert report.blocks[1].alpha is None
    assert any("7 layers have no tail to fit" in note for note in report.notes)
    assert report.from_json(report.to_json()) == report


def test_zero_rows_and_columns_of_pruned_models_work(llama):
    weight = llama.model.layers[0].mlp.up_proj.weight.data
    weight[:20], weight[:, :9] = 0, 0
    layer = next(layer for layer in analyze(llama).blocks[0].layers if layer.role == "up")
    assert layer.alpha > 1
    assert math.isfinite(layer.alpha_stderr)


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


def test_meta_tensors_are_refused_by_name():
    with torch.device("meta"):
        model = tiny("llama")
    with pytest.raises(ModelError, match=r"weights must be loaded, got a meta tensor in model\.layers\.0\.self_attn"):
        analyze(model)


def test_progress_counts_layers(llama):
    seen = []
    analyze(llama, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 21), (7, 21), (14, 21), (21, 21)]


def test_model_is_left_as_it_was(llama):
    before = {name: value.clone() for name, value in llama.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        analyze(llama, outside=True)
    assert all(torch.equal(value, before[name]) for name, value in llama.state_dict().items())


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_work_is_shared_out_whole_and_evenly(count):
    costs = [1.0, 9.0, 4.0, 4.0, 2.0, 7.0, 3.0, 1.0]
    shares = assign_to_ranks(costs, count)
    assert sorted(i for share in shares for i in share) == list(range(len(costs)))
    loads = [sum(costs[i] for i in share) for share in shares]
    assert max(loads) - min(loads) <= max(costs)

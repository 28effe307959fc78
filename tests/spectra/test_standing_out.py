"""Reports of analyze() on models: the blocks that stand out, or why nothing can be said."""

import pytest
import torch
from families import family_model
from models import tiny

from hf_farms.config import FarmsConfig
from hf_farms.spectra.analysis import analyze


@torch.no_grad()
def strengthened(model, *, except_blocks=()):
    """Give the matrices of all blocks but some a heavy tail, as training does."""
    for index, block in enumerate(model.model.layers):
        for weight in block.parameters():
            if weight.ndim == 2 and index not in except_blocks:
                left, values, right = torch.linalg.svd(weight, full_matrices=False)
                decay = torch.arange(1.0, len(values) + 1) ** -0.5
                weight.copy_(left @ torch.diag(values * decay) @ right)
    return model


@pytest.fixture
def model():
    return tiny("llama", num_hidden_layers=8, hidden_size=64, intermediate_size=96, num_key_value_heads=4, head_dim=16)


def test_blocks_that_were_left_random_stand_out(model):
    report = analyze(strengthened(model, except_blocks=(2, 5)))
    assert report.standing_out.indices == {2, 5}
    assert report.standing_out.sentence.startswith("Blocks 2 and 5 stand out")


def test_nothing_stands_out_where_all_blocks_are_alike(model):
    assert analyze(strengthened(model)).standing_out.sentence.startswith("No block stands out")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (FarmsConfig(window_rows=None), "alphas of whole matrices have no standard errors"),
        (FarmsConfig(windows_per_dim=1), "model.layers.1 was measured on one window per layer, which has no standard"),
        (FarmsConfig(window_rows=8), "the limits are known for the default measurement only, not for window_rows 8"),
        (FarmsConfig(fit="peak"), "the limits are known for the default measurement only, not for fit 'peak'"),
    ],
)
def test_other_measurements_say_nothing(config, reason, model):
    assert reason in analyze(model, config).standing_out.reason


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("llama", "the model has 2 blocks"),
        ("t5", "the model has several stacks of blocks (encoder.block, decoder.block)"),
        ("resnet", "the model has several stacks of blocks (resnet.encoder.stages.0.layers, resnet.encoder.stages.1"),
    ],
)
def test_stacks_and_few_blocks_say_nothing(family, reason):
    assert reason in analyze(family_model(family)).standing_out.reason


def test_equal_blocks_say_nothing(model):
    for block in model.model.layers[1:]:
        block.load_state_dict(model.model.layers[0].state_dict())
    assert analyze(model).standing_out.reason == "all alphas are equal"


def test_a_block_that_lost_some_layers_does_not_compare(model):
    with torch.no_grad():
        model.model.layers[3].self_attn.q_proj.weight.zero_()
    assert "different kinds of layers" in analyze(model).standing_out.reason


def test_blocks_without_a_tail_say_nothing(model):
    with torch.no_grad():
        for weight in model.model.layers[3].parameters():
            weight.zero_()
    assert analyze(model).standing_out.reason == "model.layers.3 has no alpha"

"""Scores of OWL and DLP against all Wanda scores of a block at once."""

from types import SimpleNamespace

import pytest
import torch
from families import family_model
from models import tiny, tiny_bert

from hf_farms import PruneConfig, prune
from hf_farms.blocks import ModelBlockSource
from hf_farms.errors import ModelError
from hf_farms.pruning import outliers
from hf_farms.pruning.outliers import inlier_share, median_score
from hf_farms.pruning.scoring import MeasuredLayer, score_blocks
from hf_farms.pruning.wanda import wanda_scores


def layer(weight, inputs):
    metadata = SimpleNamespace(shape=tuple(weight.shape))
    return MeasuredLayer(SimpleNamespace(metadata=metadata, read=lambda: weight), inputs)


def random_layers(seed, shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [
        layer(torch.randn(shape, generator=generator).pow(3).to(dtype), torch.rand(shape[1], generator=generator))
        for shape in shapes
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shapes", [[(1, 1)], [(1, 2)], [(7, 5), (3, 9)], [(40, 31), (8, 64), (33, 3)]])
def test_scores_are_those_of_the_whole_block_at_once(shapes, dtype, monkeypatch):
    # Rows in several parts.
    monkeypatch.setattr(outliers, "ENTRIES_AT_ONCE", 20)
    layers = random_layers(len(shapes), shapes, dtype)
    scores = torch.cat([wanda_scores(x.view.read(), x.inputs).flatten() for x in layers])
    assert median_score(layers) == scores.median()
    assert 1 - inlier_share(layers) == pytest.approx(float((scores > 5 * scores.mean()).float().mean()))


def test_a_median_of_equal_and_zero_scores_is_exact():
    weight = torch.tensor([[0.0, 0.0, 0.0], [2.0, 2.0, 1e-38]])
    assert median_score([layer(weight, torch.ones(3))]) == 0
    assert median_score([layer(weight[1:], torch.ones(3))]) == 2
    assert inlier_share([layer(torch.zeros(2, 3), torch.ones(3))]) == 1


def test_layers_without_inputs_do_not_count():
    known, unknown = random_layers(0, [(6, 5)]), [layer(torch.full((9, 9), 100.0), None)]
    for score in (median_score, inlier_share):
        assert score(known + unknown) == score(known)
        assert score(unknown) is None


@pytest.mark.parametrize("allocation", ["ramp", "owl", "dlp"])
@pytest.mark.parametrize(("pattern", "sparsity"), [("unstructured", 0.333), ("unstructured", 0.97), ("N:8", 0.55)])
def test_totals_of_models_are_exact(allocation, pattern, sparsity, ids):
    model = tiny("llama", num_hidden_layers=5, intermediate_size=56)
    config = PruneConfig(method="magnitude", allocation=allocation, pattern=pattern, sparsity=sparsity)
    report = prune(model, config, calibration=None if allocation == "ramp" else ids).report
    layers = [x for block in report.blocks for x in block.layers]
    weights = sum(x.num_weights for x in layers)
    missed = abs(sum(x.num_zeros for x in layers) - round(sparsity * weights))
    # Blocks are equal: no block can move by an eighth without being further off.
    assert missed == 0 if pattern == "unstructured" else missed <= weights / 5 / 16
    assert len({block.sparsity for block in report.blocks}) > 1


@pytest.mark.parametrize("allocation", ["owl", "dlp"])
def test_experts_without_tokens_do_not_count(allocation, ids):
    model = family_model("mixtral")
    with torch.no_grad():
        # Ties go to the last experts, so that the first two are never chosen.
        model.model.layers[0].mlp.gate.weight.zero_()
        for name, parameter in model.model.layers[0].mlp.experts.named_parameters():
            assert parameter.shape[0] == 4, name
            parameter[:2] *= 1000
    config = PruneConfig(method="magnitude", allocation=allocation)
    scores = [block[""] for block in score_blocks(ModelBlockSource(model), config, ids)[allocation]]
    assert len(scores) == len(model.model.layers)
    assert abs(scores[0] - scores[1]) < 0.5 * max(scores)


@pytest.mark.parametrize("allocation", ["ramp", "owl", "dlp"])
def test_encoders_are_allocated(allocation, ids):
    report = prune(tiny_bert(), PruneConfig(method="magnitude", allocation=allocation), calibration=ids).report
    assert report.sparsity == 0.5
    # Random weights have no outliers of five times the mean.
    assert len({block.target for block in report.blocks}) > 1 or allocation == "owl"


def test_the_ramp_goes_on_from_encoder_to_decoder_which_cannot_be_run_block_by_block(ids):
    model = family_model("t5")
    with pytest.raises(ModelError, match="blocks must form a single stack to be run one after another"):
        prune(model, PruneConfig(method="magnitude", allocation="owl"), calibration=ids)
    report = prune(model, PruneConfig(method="magnitude", allocation="ramp")).report
    targets = [block.target for block in report.blocks]
    assert targets == sorted(targets)
    assert targets[0] / targets[-1] == pytest.approx(0.9 / 1.1)
    weights = sum(layer.num_weights for block in report.blocks for layer in block.layers)
    assert sum(layer.num_zeros for block in report.blocks for layer in block.layers) == round(weights / 2)

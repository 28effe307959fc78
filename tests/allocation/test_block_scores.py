"""Scores of blocks from alphas of layers, against plain numpy."""

import math

import numpy as np
import pytest

from hf_farms.allocation.block_scores import LayerAlpha, block_scores

ROLES = ("q", "k", "v", "o", "gate", "up")


def layers(alphas, errors, roles=ROLES):
    return [LayerAlpha(role, float(a), float(e)) for role, a, e in zip(roles, alphas, errors, strict=True)]


@pytest.fixture
def numbers():
    generator = np.random.default_rng(0)
    return generator.uniform(1.5, 5, (7, len(ROLES))), generator.uniform(0.01, 0.1, (7, len(ROLES)))


@pytest.mark.parametrize(("rule", "kept"), [("mean", slice(None)), ("trimmed", slice(1, -1)), ("median", slice(2, 4))])
def test_scores_over_roles(numbers, rule, kept):
    alphas, errors = numbers
    scores = block_scores([layers(a, e) for a, e in zip(alphas, errors, strict=True)], rule)
    for (score, error), own, own_errors in zip(scores, alphas, errors, strict=True):
        order = np.argsort(own)[kept]
        assert score == pytest.approx(own[order].mean())
        assert error == pytest.approx(math.sqrt(np.square(own_errors[order]).sum()) / len(order))
    if rule == "median":
        assert [score for score, _ in scores] == pytest.approx(np.median(alphas, axis=1).tolist())


def test_few_roles_are_not_trimmed_and_an_odd_number_has_one_median():
    block = layers([4, 1, 2], [0.1, 0.2, 0.3], ROLES[:3])
    assert block_scores([block], "trimmed") == block_scores([block], "mean")
    assert block_scores([block], "median") == [(2, 0.3)]


def test_standardized_roles_have_one_mean_and_one_deviation_over_blocks(numbers):
    alphas, errors = numbers
    # A role that does not vary is only shifted, to the mean of all.
    alphas[:, 2] = 3
    scores = block_scores([layers(a, e) for a, e in zip(alphas, errors, strict=True)], "standardised")
    deviations = alphas.std(0)
    scale = np.where(deviations > 0, deviations[deviations > 0].mean() / np.where(deviations > 0, deviations, 1), 0)
    scaled = alphas.mean(0).mean() + scale * (alphas - alphas.mean(0))
    assert [score for score, _ in scores] == pytest.approx(scaled.mean(1).tolist())
    expected = np.sqrt(np.square(scale * errors).sum(1)) / len(ROLES)
    assert [error for _, error in scores] == pytest.approx(expected.tolist())


def test_roles_that_do_not_vary_at_all_stay_as_they_are():
    block = layers([2, 4], [0.1, 0.1], ROLES[:2])
    assert block_scores([block, block], "standardised") == block_scores([block, block], "mean")


def test_experts_weigh_as_one_role_and_a_block_without_layers_has_no_score():
    block = [LayerAlpha("q", 2.0, None), *[LayerAlpha("up", alpha, None) for alpha in (3.0, 5.0)]]
    assert block_scores([block, []], "mean") == [(3.0, None), None]
    assert block_scores([[*block, LayerAlpha("v", 6.0, 0.3)]], "mean") == [(4.0, pytest.approx(0.1))]

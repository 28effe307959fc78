"""A pattern whose groups are too coarse for the spread is known before anything is measured."""

import random
import warnings

import pytest

from hf_farms.allocation.sparsity import allocate_sparsity, apportion_groups
from hf_farms.config import PruneConfig
from hf_farms.config.effects import given_fields
from hf_farms.config.rounding import is_rounded_away, warn_rounded_away
from hf_farms.errors import NoEffectWarning


@pytest.mark.parametrize(
    ("options", "known"),
    [
        ({"spread": 0.05}, True),
        ({"spread": 0}, True),
        ({}, False),  # depends on the spectra
        ({"spread": 0.05, "sparsity": 0.55}, False),  # blocks must differ
        ({"spread": 0.05, "pattern": "N:16"}, False),
        ({"spread": 0.05, "pattern": "unstructured"}, False),
        ({"spread": 0.05, "allocation": "uniform"}, False),
        ({"spread": 0.05, "allocation": "owl"}, True),
        ({"spread": 0.07, "allocation": "owl"}, False),
        ({"allocation": "ramp+farms"}, False),
        ({"allocation": "auto"}, False),
    ],
)
def test_what_is_known_from_the_config(options, known):
    assert is_rounded_away(PruneConfig(**{"pattern": "N:8", **options})) is known


def test_no_scores_change_what_is_known():
    draw, config = random.Random(0), PruneConfig(pattern="N:8", spread=0.058)
    assert is_rounded_away(config)
    for _ in range(200):
        sizes = [draw.randint(1, 5) * 64 for _ in range(draw.randint(2, 12))]
        scores = [draw.random() ** draw.choice([0.1, 1, 9]) for _ in sizes]
        targets = allocate_sparsity(scores, sizes=sizes, target=0.5, spread=0.058, bounds=(0.0, 0.999))
        assert set(apportion_groups(targets, sizes=sizes, total=sum(sizes) // 2, group=8, highest=0.999)) == {4}


def test_the_warning_says_what_every_block_keeps():
    config = PruneConfig(pattern="N:8", spread=0.05, sparsity=0.25)
    with pytest.warns(NoEffectWarning, match=r"at a spread of 0\.05 every block keeps 6 of every 8 weights\."):
        warn_rounded_away(config)
    with warnings.catch_warnings(), given_fields(()):
        warnings.simplefilter("error")
        warn_rounded_away(config)

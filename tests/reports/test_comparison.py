import json
import math
from dataclasses import replace

import pytest
import torch
from families import family_model
from models import tiny

from hf_farms.config import FarmsConfig
from hf_farms.reports.comparison import SpectralComparison, compare_spectra
from hf_farms.spectra.analysis import analyze


@pytest.fixture(scope="module")
def two():
    """A model, and one whose second block has become heavier-tailed."""
    first, second = tiny("llama"), tiny("llama")
    with torch.no_grad():
        for parameter in second.model.layers[1].parameters():
            if parameter.ndim == 2:
                parameter *= torch.logspace(0, 2, len(parameter))[:, None]
    return analyze(first), analyze(second)


def test_differences_are_second_minus_first_with_the_errors_of_both(two):
    comparison = compare_spectra(*two)
    for index, block in enumerate(comparison.blocks):
        a, b = two[0].blocks[index], two[1].blocks[index]
        assert block.alpha.difference == b.alpha - a.alpha
        assert block.alpha.stderr == math.hypot(a.alpha_stderr, b.alpha_stderr)
        assert [layer.name for layer in block.layers] == [layer.name for layer in a.layers]
    assert [block.alpha.difference for block in comparison.blocks][::2] == [0.0, 0.0]
    assert comparison.blocks[1].alpha.difference < 0


def test_what_is_beyond_two_errors_is_counted(two):
    comparison = compare_spectra(*two)
    assert [block.alpha.beyond_two_errors for block in comparison.blocks] == [False, True, False]
    assert comparison.notes[0].startswith("1 of 3 blocks differ by more than two standard errors; by chance alone abou")


def test_json_round_trip(two, tmp_path):
    comparison = compare_spectra(*two)
    comparison.save(tmp_path / "c.json")
    assert SpectralComparison.load(tmp_path / "c.json") == comparison
    assert json.loads(comparison.to_json())["config"]["window_rows"] == 16


def test_models_of_other_names_are_matched_by_place():
    comparison = compare_spectra(analyze(family_model("opt")), analyze(family_model("gpt2")))
    block = comparison.blocks[1]
    assert (block.name, block.second_name) == ("model.decoder.layers.1", "transformer.h.1")
    assert {layer.role: layer.second_name for layer in block.layers}["k"] == "transformer.h.1.attn.c_attn.k"
    assert any("matched by index" in note for note in comparison.notes)


def test_models_of_other_depth_share_their_first_blocks():
    comparison = compare_spectra(analyze(tiny("llama")), analyze(tiny("llama", num_hidden_layers=2)))
    assert len(comparison.blocks) == 2
    assert "2 blocks are in both; the first has 3, the second 2." in comparison.notes


def test_spectra_that_were_not_measured_alike_are_refused(two):
    other = replace(two[1], window_rows=8, config=FarmsConfig(window_rows=8, fit="peak"))
    with pytest.raises(ValueError, match=r"measured alike, got window_rows 16 and 8, fit 'mid' and 'peak'"):
        compare_spectra(two[0], other)


def test_blocks_that_cannot_be_matched_are_refused(two):
    with pytest.raises(ValueError, match=r"same names or the same number of blocks, got 3 and 2 blocks without a name"):
        compare_spectra(two[0], analyze(family_model("opt")))


def test_layers_without_an_error_are_neither_within_nor_beyond():
    report = analyze(tiny("llama"), FarmsConfig(window_rows=None))
    comparison = compare_spectra(report, report)
    assert {block.alpha.beyond_two_errors for block in comparison.blocks} == {None}
    assert any("have no standard error of the difference" in note for note in comparison.notes)

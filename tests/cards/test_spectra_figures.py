import math

import pytest
from families import family_model
from hf_farms_cards.figures.spectra import (
    EsdCurve,
    alpha_figure,
    comparison_figure,
    draw_alpha_by_depth,
    draw_comparison,
    draw_esd,
    draw_heat_map,
    esd_figure,
    heat_map_figure,
)
from hf_farms_cards.figures.style import CARD_WIDTH
from models import tiny

from hf_farms.config import FarmsConfig
from hf_farms.reports.comparison import compare_spectra
from hf_farms.spectra.analysis import analyze
from hf_farms.spectra.spectrum import layer_spectrum


@pytest.fixture(scope="module")
def report():
    return analyze(tiny("llama"))


def test_alpha_by_depth_shows_every_role_and_the_score_with_errors(report):
    axes = alpha_figure(report).axes[0]
    lines = {container.get_label(): container for container in axes.containers}
    assert list(lines) == ["q", "k", "v", "o", "gate", "up", "down", "block score"]
    score = lines["block score"]
    assert score.lines[0].get_ydata().tolist() == [block.alpha for block in report.blocks]
    low, high = score.lines[2][0].get_segments()[0][:, 1]
    assert (high - low) / 2 == pytest.approx(report.blocks[0].alpha_stderr)


def test_the_heat_map_has_a_cell_for_every_block_and_role(report):
    axes = heat_map_figure(report).axes[0]
    cells = axes.images[0].get_array()
    assert cells.shape == (7, 3)
    assert [label.get_text() for label in axes.get_yticklabels()][:2] == ["q", "k"]
    assert cells[5, 1] == pytest.approx(report.blocks[1].layers[5].alpha)


@pytest.mark.filterwarnings(r"ignore:\d+ of \d+ layers are smaller than windows")
def test_blocks_with_other_layers_leave_holes():
    report = analyze(family_model("jamba"))
    cells = heat_map_figure(report).axes[0].images[0].get_array()
    assert any(math.isnan(alpha) for alpha in cells.filled(math.nan).flat)


def test_the_esd_shows_the_law_that_was_fitted(report):
    spectrum = layer_spectrum(tiny("llama").model.layers[0].mlp.up_proj.weight, FarmsConfig(window_rows=16))
    curve = EsdCurve("up", spectrum.eigenvalues.tolist(), spectrum.alpha, spectrum.tail_min)
    axes = esd_figure([curve]).axes[0]
    law = next(line for line in axes.lines if line.get_label().startswith("power law"))
    (x1, x2), (y1, y2) = law.get_data()
    assert -math.log(y2 / y1) / math.log(x2 / x1) == pytest.approx(spectrum.alpha)
    assert x1 == spectrum.tail_min
    # What the law says lies above its start is the share of the eigenvalues there.
    share = sum(x >= x1 for x in curve.eigenvalues) / len(curve.eigenvalues)
    assert y1 * x1 / (spectrum.alpha - 1) == pytest.approx(share)


@pytest.mark.parametrize("eigenvalues", [[0.0, 0.0], [1.0, 1.0, 1.0], [2.0]])
def test_spectra_without_a_width_are_said_to_be_so(eigenvalues):
    axes = esd_figure([EsdCurve("flat", eigenvalues, None, None)]).axes[0]
    assert "no two different eigenvalues" in axes.texts[0].get_text()


def test_no_curves_no_figure():
    with pytest.raises(ValueError, match="curves must contain at least one curve, got none"):
        esd_figure([])


def test_two_models_and_their_difference(report):
    comparison = compare_spectra(report, analyze(tiny("llama", seed=1)))
    top, bottom = comparison_figure(comparison).axes
    assert [container.get_label()[:6] for container in top.containers] == ["first:", "second"]
    shown = sorted(y for container in bottom.containers for y in container.lines[0].get_ydata())
    assert shown == sorted(block.alpha.difference for block in comparison.blocks)


def test_figures_have_the_size_of_a_card_and_legends_outside_their_axes(report):
    comparison = compare_spectra(report, analyze(tiny("llama", seed=1)))
    curve = EsdCurve("x", [0.1, 0.5, 1.0, 2.0, 8.0], 2.0, 1.0)
    for figure in (alpha_figure(report), heat_map_figure(report), comparison_figure(comparison), esd_figure([curve])):
        assert (figure.get_figwidth(), figure.dpi) == (CARD_WIDTH, 200)
        figure.draw_without_rendering()
        for axes in figure.axes:
            if (legend := axes.get_legend()) is not None:
                assert not legend.get_window_extent().overlaps(axes.get_window_extent())


def test_figures_are_files_with_the_same_bytes_each_time(report, tmp_path):
    comparison = compare_spectra(report, report)
    curve = EsdCurve("x", [0.1, 0.5, 1.0, 2.0, 8.0], 2.0, 1.0)
    for draw, what in (
        (draw_alpha_by_depth, report),
        (draw_heat_map, report),
        (draw_comparison, comparison),
        (draw_esd, [curve]),
    ):
        draw(what, tmp_path / "a.png")
        draw(what, tmp_path / "b.png")
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
        assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")

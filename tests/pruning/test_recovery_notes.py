"""Notes on recoveries that depend on the spectra of the dense model."""

from dataclasses import replace

import pytest

from hf_farms import FarmsConfig, PruneConfig, SpectralReport
from hf_farms.pruning.recovery_notes import less_trained_note
from hf_farms.reports import BlockSpectrum
from hf_farms.reports.standing_out import find_standing_out


def spectra_of(alphas):
    config = FarmsConfig()
    blocks = [
        BlockSpectrum(index=index, name=f"layers.{index}", alpha=alpha, alpha_stderr=0.01, layers=())
        for index, alpha in enumerate(alphas)
    ]
    report = SpectralReport(model="m", model_type="llama", config=config, window_rows=12, blocks=blocks)
    return replace(report, standing_out=find_standing_out(blocks, config))


@pytest.mark.parametrize(
    ("high", "subject"),
    [
        ((3,), "Block layers.3 may be"),
        ((3, 5), "Blocks layers.3, layers.5 may be"),
        ((2, 5, 8, 11, 14), "5 blocks, first layers.2, may be"),
    ],
)
def test_blocks_that_look_less_trained_are_named(high, subject):
    spectra = spectra_of([2.5 + (1.5 if index in high else 0.001 * index) for index in range(20)])
    note = less_trained_note(spectra, PruneConfig(recover="submodule", pattern="N:8"), can_search=True)
    assert note.startswith(subject)
    assert "`allocation='auto'` may give a better model" in note


@pytest.mark.parametrize(
    ("options", "high"),
    [
        ({"recover": "submodule"}, ()),
        ({"recover": "submodule", "allocation": "auto"}, (3,)),
        ({"recover": "submodule", "allocation": "farms"}, (3,)),
        ({"recover": "submodule", "pattern": "2:4"}, (3,)),
        ({"allocation": "uniform"}, (3,)),
    ],
)
def test_without_such_blocks_or_such_a_prune_nothing_is_said(options, high):
    spectra = spectra_of([2.5 + (1.5 if index in high else 0.01 * index) for index in range(9)])
    assert less_trained_note(spectra, PruneConfig(**options), can_search=True) is None


def test_nothing_is_said_where_allocations_cannot_be_searched():
    spectra = spectra_of([2.5 + (1.5 if index == 3 else 0.01 * index) for index in range(9)])
    assert less_trained_note(spectra, PruneConfig(recover="submodule"), can_search=True) is not None
    assert less_trained_note(spectra, PruneConfig(recover="submodule"), can_search=False) is None

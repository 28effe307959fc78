"""Spectral reports from alphas that are written out, or drawn."""

import random
import statistics

from hf_farms.config import FarmsConfig
from hf_farms.reports import BlockSpectrum, LayerRecord, SpectralReport


def spectral_report(blocks, *, rows=8):
    """Blocks of layers: (alpha, standard error, weights) for each layer."""

    def layer(name, alpha, error, weights):
        numbers = dict.fromkeys(LayerRecord.__dataclass_fields__)
        numbers |= {"name": name, "role": "q", "shape": (weights,), "alpha": alpha, "alpha_stderr": error}
        return LayerRecord(**{**numbers, "num_eigenvalues": 100})

    records = []
    for index, layers in enumerate(blocks):
        alphas = [alpha for alpha, _, _ in layers if alpha is not None]
        records.append(
            BlockSpectrum(
                index=index,
                name=str(index),
                alpha=statistics.fmean(alphas) if alphas else None,
                alpha_stderr=layers[0][1],
                layers=tuple(layer(f"{index}.{i}", *numbers) for i, numbers in enumerate(layers)),
            )
        )
    return SpectralReport(
        model="m", model_type="t", config=FarmsConfig(window_rows=rows), window_rows=rows, blocks=tuple(records)
    )


def random_report(count, *, seed=0, rows=8):
    generator = random.Random(f"{count} {seed}")
    return spectral_report(
        [[(generator.uniform(1.5, 3), generator.uniform(0.01, 0.2), generator.randint(5, 50))] for _ in range(count)],
        rows=rows,
    )

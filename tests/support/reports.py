"""A report of each kind, as small as it gets."""

from hf_farms.config import CalibrationConfig, EvaluationConfig, FarmsConfig, PruneConfig
from hf_farms.reports import (
    BlockSparsity,
    BlockSpectrum,
    CalibrationRecord,
    LayerRecord,
    LayerSparsity,
    PerplexityRecord,
    PruneReport,
    SpectralReport,
)


def layer(**changes):
    numbers = {"alpha": 2.5, "alpha_stderr": 0.01, "ks_distance": 0.1, "alpha_hat": 1.0}
    return LayerRecord(
        name="model.layers.0.mlp.up_proj",
        role="up",
        shape=(48, 32),
        window_shape=(16, 16),
        num_windows=6,
        num_eigenvalues=96,
        spectral_norm=2.0,
        frobenius_norm_sq=9.0,
        stable_rank=4.5,
        entropy=0.8,
        **{**numbers, **changes},
    )


def spectral(config=None):
    block = BlockSpectrum(
        index=0, name="model.layers.0", alpha=2.5, alpha_stderr=None, layers=(layer(), layer(alpha=None))
    )
    return SpectralReport(
        model="x/y", model_type="llama", config=config or FarmsConfig(), window_rows=16, blocks=(block,), notes=("n",)
    )


def pruned():
    zeros = LayerSparsity(name="model.layers.0.mlp.up_proj", num_weights=1536, num_zeros=768)
    return PruneReport(
        model="x/y",
        model_type="llama",
        config=PruneConfig(),
        dtype="bfloat16",
        blocks=(BlockSparsity(index=0, name="model.layers.0", target=0.5, sparsity=0.5, layers=(zeros,)),),
        sparsity=0.5,
        parameter_sparsity=0.4,
        num_parameters=2000,
        before=spectral(),
        after=spectral(),
        calibration=CalibrationRecord(config=CalibrationConfig(), num_sequences=2, num_tokens=34),
        perplexity=PerplexityRecord(
            config=EvaluationConfig(),
            context_length=64,
            num_tokens=630,
            dtype="bfloat16",
            dense=10.0,
            pruned=20.0,
            nll_difference=0.69,
            nll_difference_stderr=0.01,
        ),
    )

"""Quantisation methods whose weights transformers or their library dequantises."""

from __future__ import annotations

from typing import Any

from hf_farms.errors import ModelError

__all__ = ["dequantising_options"]

# `quant_method` -> the config class of transformers that dequantises while loading; None: weights that their library
# dequantises one by one.
DEQUANTISED: dict[str, str | None] = {
    "mxfp4": "Mxfp4Config",
    "fp8": "FineGrainedFP8Config",
    "compressed-tensors": "CompressedTensorsConfig",
    "bitsandbytes": None,
    "torchao": None,
}


def dequantising_options(name: str, method: str) -> dict[str, Any]:
    """Return the options of `from_pretrained` that dequantise the weights during loading.

    Args:
        name: of the model.
        method: `quant_method` of its config.

    Raises:
        ModelError: the method cannot be undone.
    """
    import transformers

    if method not in DEQUANTISED:
        raise ModelError(
            f"weights must be plain or quantised by one of {', '.join(sorted(DEQUANTISED))}, got {method} in {name!r}.",
            hint="Name the unquantised model.",
        )
    if (dequantising := DEQUANTISED[method]) is None:
        return {}
    return {"quantization_config": getattr(transformers, dequantising)(dequantize=True)}

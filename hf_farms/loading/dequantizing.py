"""Quantization methods whose weights transformers or their library dequantizes."""

from __future__ import annotations

from typing import Any

from hf_farms.errors import ModelError

__all__ = ["dequantizing_options"]

# `quant_method` -> the config class of transformers that dequantizes while loading; None: weights that their library
# dequantizes one by one.
DEQUANTIZED: dict[str, str | None] = {
    "mxfp4": "Mxfp4Config",
    "fp8": "FineGrainedFP8Config",
    "compressed-tensors": "CompressedTensorsConfig",
    "bitsandbytes": None,
    "torchao": None,
}


def dequantizing_options(name: str, method: str) -> dict[str, Any]:
    """Return the options of `from_pretrained` that dequantize the weights during loading.

    Args:
        name: of the model.
        method: `quant_method` of its config.

    Raises:
        ModelError: the method cannot be undone.
    """
    import transformers

    if method not in DEQUANTIZED:
        raise ModelError(
            f"weights must be plain or quantized by one of {', '.join(sorted(DEQUANTIZED))}, got {method} in {name!r}.",
            hint="Name the unquantized model.",
        )
    if (dequantizing := DEQUANTIZED[method]) is None:
        return {}
    return {"quantization_config": getattr(transformers, dequantizing)(dequantize=True)}

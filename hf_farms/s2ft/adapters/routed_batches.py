"""The batch of a routed model: its size in a call, the modules that get it, and layers that get something else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from hf_farms.errors import ModelError

__all__ = ["batch_shape", "check_text_layer", "growth", "modules_with_batch"]

# Arguments of forward and generate that have the batch in the leading dimension, in this order.
BATCHED = ("input_ids", "inputs_embeds", "inputs", "decoder_input_ids", "decoder_inputs_embeds")

# Type of EncoderDecoderModel, whose encoder is a text model of any architecture; encoders of images have another type.
ENCODER_DECODER = "encoder-decoder"


def batch_shape(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, ...] | None:
    """Return samples and tokens of a call of forward or generate, if its arguments tell."""
    names = (*BATCHED, getattr(model, "main_input_name", "input_ids"))
    values = [*args[:1], *(kwargs.get(name) for name in names)]
    return next((tuple(value.shape[:2]) for value in values if isinstance(value, Tensor)), None)


def growth(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Return the factor by which `generate` repeats each sample."""
    configs = (kwargs.get("generation_config"), *args[1:2], getattr(model, "generation_config", None))

    def option(name: str) -> int:
        values = (kwargs.get(name), *(getattr(config, name, None) for config in configs))
        return next((value for value in values if value is not None), 1)

    return max(option("num_beams"), option("num_return_sequences"))


def modules_with_batch(model: nn.Module, layers: Iterable[str]) -> dict[nn.Module, bool]:
    """Return the model and the models of transformers inside it that have one of these layers.

    Returns:
        For each of them, whether it is an innermost one.
    """
    names = {""}
    for layer in layers:
        names.update(name for name in _parents(layer) if hasattr(model.get_submodule(name), "main_input_name"))
    modules = {model.get_submodule(name): name for name in sorted(names)}
    return {
        module: not any(other != name and (not name or other.startswith(f"{name}.")) for other in names)
        for module, name in modules.items()
    }


def check_text_layer(model: nn.Module, name: str) -> None:
    """Refuse a layer whose leading dimension is not the sample: that of an encoder of images or audio, or behind it.

    Args:
        model: with the layer.
        name: of the layer.

    Raises:
        ModelError: with the name.
    """
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if text is config or model.get_submodule(name) is model.get_output_embeddings():  # type: ignore[operator]
        return
    owners = (getattr(model.get_submodule(parent), "config", None) for parent in _parents(name))
    owner = next((each for each in owners if each is not None), config)
    texts = {type(text)}
    if config.model_type == ENCODER_DECODER:
        texts.add(type(config.encoder.get_text_config()))
    if type(owner) not in texts:
        raise ModelError(
            f"layers must be of the text model for a router, got {name}, whose inputs are not one for each sample.",
            hint="Merge the adapter, or train the roles of the text model only.",
        )


def _parents(name: str) -> list[str]:
    """Return the names of the modules around one, from the inside to the model itself."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(len(parts) - 1, -1, -1)]

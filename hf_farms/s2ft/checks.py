"""Reject models and layers that cannot be trained selectively, before any change."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from torch import nn

from hf_farms.blocks import LayerMetadata
from hf_farms.blocks.partitioned import is_partitioned
from hf_farms.errors import ModelError
from hf_farms.s2ft.engines import PLAIN, one_engine
from hf_farms.s2ft.layers import SelectiveLayer, selective_class

__all__ = ["check_module", "check_plain", "check_trainable", "check_unshared", "check_whole"]


def check_plain(model: nn.Module, *, partitioned: bool = False) -> None:
    """Reject models whose weights are not plain, whole and in memory.

    Args:
        model: not modified.
        partitioned: accept weights that ZeRO-3 keeps in parts.

    Raises:
        ValueError: S2FT is on it already.
        ModelError: adapters, quantized, sharded or missing weights.
    """
    kind = type(model).__name__
    if any(isinstance(module, SelectiveLayer) for module in model.modules()):
        raise ValueError(f"model must be plain, got {kind} with S2FT on it already. Call restore(model) first.")
    if hasattr(model, "peft_config") or any(hasattr(module, "base_layer") for module in model.modules()):
        raise ModelError(
            f"model must be without adapters for S2FT, got PEFT adapters on {kind}.",
            hint="Merge them first: model = model.merge_and_unload().",
        )
    if getattr(model, "is_quantized", False) or getattr(model, "hf_quantizer", None) is not None:
        raise ModelError(
            f"weights must be float32, bfloat16 or float16 for S2FT, got a quantized {kind}.",
            hint="Load it without quantization, or train LoRA adapters with peft.",
        )
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "full_tensor"):
            raise ModelError(
                f"weights must be whole on every process for S2FT, got a sharded one in {name}.",
                hint="Apply S2FT, or merge, before fully_shard (FSDP2); or pass Trainer(callbacks=[S2FTCallback()]).",
            )
        if is_partitioned(parameter) and not partitioned:
            raise ModelError(
                f"weights must be whole on every process for S2FT, got one that ZeRO-3 has partitioned in {name}.",
                hint="Do it before or after the training, with a model that is loaded without DeepSpeed.",
            )
        if parameter.is_meta:
            raise ModelError(
                f"weights must be loaded for S2FT, got a meta tensor in {name}.",
                hint="Load the model without offloading: leave device_map out.",
            )


def check_trainable(model: nn.Module) -> None:
    """Reject models that S2FT cannot be applied to: as `check_plain`, and with an adapter merged.

    Raises:
        ValueError: S2FT is on it already, or an adapter is merged, which the new one would take for its base.
        ModelError: as `check_plain`.
    """
    # Not at the top: adapters use the checks of this file.
    from hf_farms.s2ft.adapters.applying import is_merged

    check_plain(model, partitioned=True)
    if is_merged(model):
        raise ValueError(
            f"model must have no adapter merged into it for S2FT, got a {type(model).__name__} with one. Call "
            "unmerge(model) of that adapter first, or save the merged model and load it as the new base."
        )


def check_whole(model: nn.Module) -> None:
    """Reject models with S2FT on them that have been sharded since: what shards them holds their slices.

    Raises:
        ModelError: with the engine.
    """
    if (engine := one_engine(model)) is not PLAIN:
        raise ModelError(
            f"model must have whole weights to be restored, got one that {engine.name} has sharded.",
            hint="Save it, by Trainer.save_model or as an adapter (S2FTAdapter.from_model), and load that.",
        )


def check_unshared(model: nn.Module, layers: Iterable[LayerMetadata]) -> None:
    """Reject layers that share a weight: each would train a slice of it, or permute it.

    Raises:
        ModelError: with the names of the weight.
    """
    names: dict[nn.Parameter, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[parameter].append(name)
    for layer in layers:
        shared = names[model.get_parameter(layer.parameter)]
        if len(shared) > 1:
            raise ModelError(
                f"trained and permuted weights must belong to one layer for S2FT, got one that is both "
                f"{' and '.join(shared)}.",
                hint="Leave its role out of S2FTConfig(roles=...).",
            )


def check_module(module: nn.Module, name: str) -> None:
    """Reject layers that are not plain linear layers, or whose forward has been replaced.

    Raises:
        ModelError: with the name of the layer.
    """
    if selective_class(type(module)) is None:
        raise ModelError(
            f"trained layers must be nn.Linear or Conv1D, got {type(module).__module__}.{type(module).__name__} in "
            f"{name}."
        )
    if "forward" in vars(module):
        raise ModelError(
            f"layers must run their own forward for S2FT, got one that was replaced (by offloading, say) in {name}.",
            hint="Load the model without device_map, on one device.",
        )

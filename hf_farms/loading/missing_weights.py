"""Compare a checkpoint with its config.json: refuse missing weights, warn about unexpected ones.

transformers initializes missing weights randomly and drops unexpected ones. This module reads its report
(`output_loading_info`), so that every way of loading gives the same result.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_farms.errors import HfFarmsWarning, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["check_complete", "list_names"]

# The largest number of names in a message.
MAX_NAMES = 3
# A counter in the batch norm of torch that affects no result; old files lack it.
IGNORED = "num_batches_tracked"
NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.)")
# Layers for multi-token prediction, which are stored after the last block and which transformers does not implement.
EXTRA_LAYERS = re.compile(r"num_(mtp|nextn_predict)_layers")


def check_complete(
    model: PreTrainedModel, info: Mapping[str, Collection[Any]], *, name: str, head: bool
) -> tuple[str, ...]:
    """Refuse a checkpoint that lacks weights of the model; warn about differences that do not affect a run.

    Args:
        model: as loaded; its weights are not read.
        info: the loading report of transformers.
        name: of the model, for messages.
        head: whether the run uses the head.

    Returns:
        Names of the missing weights that the run does not use: of the head or a pooler.

    Raises:
        ModelError: weights are missing or have other shapes, or the checkpoint has more layers than config.json.
    """
    order = {key: index for index, key in enumerate(model.state_dict())}
    missing = sorted(
        (key for key in info["missing_keys"] if not key.endswith(IGNORED)),
        key=lambda key: order.get(key, len(order)),
    )
    unexpected = sorted(info["unexpected_keys"], key=_natural_order)
    unused = [key for key in missing if _is_unused(model, key, head)]
    if needed := [key for key in missing if key not in set(unused)]:
        extra = f"; unexpected: {_counted(unexpected)}, first {list_names(unexpected)}" if unexpected else ""
        raise ModelError(
            f"checkpoint must hold every weight, got {len(needed)} missing, first {list_names(needed)}, in {name!r}"
            f"{extra}.",
            hint="Check that all shards exist and that config.json belongs to this model.",
        )
    _refuse_other_shapes(info["mismatched_keys"], name, order)
    _refuse_more_layers(model, unexpected, order, name)
    if info["error_msgs"]:
        raise ModelError(f"weights must fit the model, got {next(iter(info['error_msgs']))} in {name!r}.")
    if unexpected:
        _warn(
            f"{type(model).__name__} does not have {_counted(unexpected)} of {name!r}, which will be ignored: "
            f"{list_names(unexpected)}."
        )
    if unused:
        _warn(
            f"{name!r} lacks {_counted(unused)} of the head or pooler, and so will any checkpoint written from it: "
            f"{list_names(unused)}."
        )
    return tuple(unused)


def list_names(names: Sequence[str]) -> str:
    """List the first names, and the number of the others."""
    rest = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {rest} more" if rest > 0 else "")


def _counted(names: Sequence[str]) -> str:
    return f"{len(names)} weight{'s' if len(names) > 1 else ''}"


def _warn(message: str) -> None:
    # A single call site, so that loading the same model again (for a baseline) does not repeat the warning.
    warnings.warn(message, HfFarmsWarning, stacklevel=2)


def _is_unused(model: Any, key: str, head: bool) -> bool:
    """Return whether a weight belongs to a pooler, or to a head that the run does not use."""
    if "pooler" in key:
        return True
    return not head and _is_head(model, key)


def _is_head(model: Any, key: str) -> bool:
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    path = key.rpartition(".")[0]
    if output is not None and path and _submodule(model, path) is output:
        return True
    base = model.base_model
    if base is model or key.startswith(f"{model.base_model_prefix}."):
        return False
    # Other weights are the head only if the base model is the larger part.
    return 2 * _num_parameters(base) > _num_parameters(model)


def _submodule(model: Any, path: str) -> Any:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _num_parameters(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _refuse_other_shapes(mismatched: Collection[Any], name: str, order: Mapping[str, int]) -> None:
    if not mismatched:
        return
    key, stored, expected = min(mismatched, key=lambda item: order.get(item[0], len(order)))
    more = f" (and {len(mismatched) - 1} more)" if len(mismatched) > 1 else ""
    raise ModelError(
        f"weights must have the shapes that config.json gives them, {tuple(expected)}, got {tuple(stored)} in "
        f"{key}{more} of {name!r}.",
        hint="Check that config.json belongs to this model.",
    )


def _refuse_more_layers(model: Any, unexpected: Sequence[str], order: Mapping[str, int], name: str) -> None:
    """Refuse stored layers beyond the number in config.json: without them it would be another model."""
    known = {NUMBER.sub("*", key) for key in order}
    prefix = f"{model.base_model_prefix}."
    known |= {pattern.removeprefix(prefix) for pattern in known}
    more = [key for key in unexpected if NUMBER.search(key) and NUMBER.sub("*", key) in known]
    if extra := _extra_layers(model.config):
        # Layers for multi-token prediction also have weights that no layer of the model has.
        unknown = {_layer(key) for key in unexpected if NUMBER.sub("*", key) not in known}
        allowed = sorted({layer for key in more if (layer := _layer(key)) in unknown}, key=_natural_order)[:extra]
        more = [key for key in more if _layer(key) not in allowed]
    if more:
        raise ModelError(
            f"config.json must have all stored layers, got {len(more)} weights of additional layers in {name!r}, "
            f"first {list_names(more)}.",
            hint="Correct the number of layers in config.json, or name the checkpoint that it belongs to.",
        )


def _extra_layers(config: Any) -> int:
    text = config.get_text_config()
    return sum(
        value
        for key, value in vars(text).items()
        if EXTRA_LAYERS.fullmatch(key) and isinstance(value, int) and value > 0
    )


def _layer(key: str) -> str:
    """Return the layer of a weight: its name up to the first number."""
    match = NUMBER.search(key)
    return key[: match.end()] if match else ""


def _natural_order(key: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in key.split(".")]

"""What a checkpoint lacks of the model that its config.json describes, and what it holds beside it.

transformers fills what is missing with random numbers and drops what it has no place for. Its own report of that
(`output_loading_info`) is read here, so that every way of loading gives the same answer.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_farms.errors import HfFarmsWarning, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["check_complete", "enumerated"]

SHOWN = 3
# A counter of torch's batch norm that no result depends on; old files do not have it.
UNIMPORTANT = "num_batches_tracked"
NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.)")
# Layers of multi-token prediction lie in the files behind the last block, and transformers does not have them.
EXTRA_LAYERS = re.compile(r"num_(mtp|nextn_predict)_layers")


def check_complete(
    model: PreTrainedModel, info: Mapping[str, Collection[Any]], *, name: str, head: bool
) -> tuple[str, ...]:
    """Refuse a checkpoint that does not hold the model; warn of what does not matter to a run.

    Args:
        model: as loaded; its weights are not looked at.
        info: what transformers reported of loading it.
        name: of the model.
        head: whether the run uses the head.

    Returns:
        Names of the weights that are missing and that nothing here uses: of the head or of a pooler.

    Raises:
        ModelError: weights are missing, or have other shapes, or there are layers that config.json does not have.
    """
    order = {key: place for place, key in enumerate(model.state_dict())}
    missing = sorted(
        (key for key in info["missing_keys"] if not key.endswith(UNIMPORTANT)),
        key=lambda key: order.get(key, len(order)),
    )
    unexpected = sorted(info["unexpected_keys"], key=_natural)
    unused = [key for key in missing if _is_unused(model, key, head)]
    if needed := [key for key in missing if key not in set(unused)]:
        beside = f"; without a place: {_counted(unexpected)}, first {enumerated(unexpected)}" if unexpected else ""
        raise ModelError(
            f"checkpoint must hold every weight, got {len(needed)} missing, first {enumerated(needed)}, in {name!r}"
            f"{beside}.",
            hint="Check that all shards are there and that config.json is of this model.",
        )
    _refuse_shapes(info["mismatched_keys"], name, order)
    _refuse_more_layers(model, unexpected, order, name)
    if info["error_msgs"]:
        raise ModelError(f"weights must fit the model, got {next(iter(info['error_msgs']))} in {name!r}.")
    if unexpected:
        _warn(
            f"{type(model).__name__} has no place for {_counted(unexpected)} of {name!r}, left out: "
            f"{enumerated(unexpected)}."
        )
    if unused:
        _warn(
            f"{name!r} lacks {_counted(unused)} of the head or pooler, and so will what is written from it: "
            f"{enumerated(unused)}."
        )
    return tuple(unused)


def enumerated(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _counted(names: Sequence[str]) -> str:
    return f"{len(names)} weight{'s' if len(names) > 1 else ''}"


def _warn(message: str) -> None:
    # From one place, so that the same model loaded again (for a baseline) is not warned of twice.
    warnings.warn(message, HfFarmsWarning, stacklevel=2)


def _is_unused(model: Any, key: str, head: bool) -> bool:
    """Whether a weight is of a pooler, or of the head where that is not used."""
    if "pooler" in key:
        return True
    return not head and _is_head(model, key)


def _is_head(model: Any, key: str) -> bool:
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    path = key.rpartition(".")[0]
    if output is not None and path and _module(model, path) is output:
        return True
    base = model.base_model
    if base is model or key.startswith(f"{model.base_model_prefix}."):
        return False
    # Of a model whose parts are not those of a base model and a head nothing can be said.
    return 2 * _size(base) > _size(model)


def _module(model: Any, path: str) -> Any:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _size(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _refuse_shapes(mismatched: Collection[Any], name: str, order: Mapping[str, int]) -> None:
    if not mismatched:
        return
    key, stored, wanted = min(mismatched, key=lambda item: order.get(item[0], len(order)))
    more = f" (and {len(mismatched) - 1} more)" if len(mismatched) > 1 else ""
    raise ModelError(
        f"weights must have the shapes that config.json gives them, {tuple(wanted)}, got {tuple(stored)} in "
        f"{key}{more} of {name!r}.",
        hint="Check that config.json is of this model.",
    )


def _refuse_more_layers(model: Any, unexpected: Sequence[str], order: Mapping[str, int], name: str) -> None:
    """Stored weights that are one more of what the model has: without them it is another model."""
    known = {NUMBER.sub("*", key) for key in order}
    prefix = f"{model.base_model_prefix}."
    known |= {pattern.removeprefix(prefix) for pattern in known}
    more = [key for key in unexpected if NUMBER.search(key) and NUMBER.sub("*", key) in known]
    if extra := _extra_layers(model.config):
        # They have weights of their own, too, that no layer of the model has.
        strange = {_layer(key) for key in unexpected if NUMBER.sub("*", key) not in known}
        kept = sorted({layer for key in more if (layer := _layer(key)) in strange}, key=_natural)[:extra]
        more = [key for key in more if _layer(key) not in kept]
    if more:
        raise ModelError(
            f"config.json must have all layers that are stored, got {len(more)} weights of more of them in {name!r}, "
            f"first {enumerated(more)}.",
            hint="Correct the number of layers in config.json, or name the checkpoint that it is of.",
        )


def _extra_layers(config: Any) -> int:
    text = config.get_text_config()
    return sum(
        value
        for key, value in vars(text).items()
        if EXTRA_LAYERS.fullmatch(key) and isinstance(value, int) and value > 0
    )


def _layer(key: str) -> str:
    """The layer that a weight is in: its name up to the first number."""
    found = NUMBER.search(key)
    return key[: found.end()] if found else ""


def _natural(key: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in key.split(".")]

"""Find the parameters that an adapter patches, in a plain model, and reject models that cannot be patched."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_farms.blocks.model_checks import check_model
from hf_farms.blocks.origins import find_origins
from hf_farms.blocks.wrappers import unwrapped
from hf_farms.errors import ModelError
from hf_farms.s2ft.adapters.patches import S2FTAdapter, WeightPatch
from hf_farms.s2ft.checks import check_plain

__all__ = [
    "check_patchable",
    "check_side",
    "check_untied",
    "checkpoint_names",
    "find_targets",
    "parameter_names",
    "resolve",
]


def find_targets(model: nn.Module, adapter: S2FTAdapter) -> dict[str, tuple[nn.Module, nn.Parameter]]:
    """Find the module and the parameter of every patch.

    Args:
        model: a plain transformers model, also inside DDP.
        adapter: for a model of this architecture and size.

    Returns:
        By name of the patch.

    Raises:
        ValueError: S2FT is on the model, or it is compiled.
        ModelError: a model without these weights, or with others of that name (another shape or dtype); a model that is
            quantized, sharded, offloaded or has adapters of PEFT; a weight that several layers share.
    """
    return {name: (module, parameter) for name, (_, module, parameter) in resolve(model, adapter).items()}


def resolve(
    model: nn.Module, adapter: S2FTAdapter, *, checked: bool = False
) -> dict[str, tuple[str, nn.Module, nn.Parameter]]:
    """Find the name in memory, the module and the parameter of every patch, as `find_targets` does.

    Args:
        model: as for `find_targets`.
        adapter: as for `find_targets`.
        checked: whether `check_patchable` has accepted the model just now.
    """
    if not checked:
        check_patchable(model)
    model = unwrapped(model)
    parameters = _parameters(model)
    names = _names_in(model, parameters, tuple(adapter.patches))
    targets: dict[str, tuple[str, nn.Module, nn.Parameter]] = {}
    for patch in adapter.patches.values():
        path, _, attribute = names[patch.name].rpartition(".")
        module = model.get_submodule(path)
        parameter = getattr(module, attribute)
        _check_fits(parameter, patch)
        check_side(module, patch)
        targets[patch.name] = names[patch.name], module, parameter
    check_untied(parameters, names.values())
    return targets


def _check_fits(parameter: Tensor, patch: WeightPatch) -> None:
    """Reject another shape or dtype."""
    if tuple(parameter.shape) != tuple(patch.shape):
        raise ModelError(
            f"weights must have the shape that the adapter was made for, got {tuple(parameter.shape)} instead of "
            f"{tuple(patch.shape)} in {patch.name}.",
            hint="Take the base model of the adapter.",
        )
    if parameter.dtype != patch.values.dtype:
        raise ModelError(
            f"weights must have the dtype of the adapter ({_name(patch.values.dtype)}), got {_name(parameter.dtype)} "
            f"in {patch.name}.",
            hint=f"Load the model with dtype=torch.{_name(patch.values.dtype)}.",
        )


def check_side(module: nn.Module, patch: WeightPatch) -> None:
    """Reject a patch whose side is not that of its dimension in this layer, which would be computed with transposed.

    Raises:
        ModelError: inputs are the last dimension of a Linear, and the first one of a Conv1D.
    """
    if not isinstance(module, nn.Linear | Conv1D):
        return
    inputs = 0 if isinstance(module, Conv1D) else 1
    side = "inputs" if patch.dim == inputs else "outputs"
    if patch.side != side:
        raise ModelError(
            f"patches must name the side of their channels, got {patch.side} for dimension {patch.dim} of "
            f"{patch.name}, which counts the {side} of a {type(module).__name__}.",
            hint="Make the adapter again: S2FTAdapter.from_training(model, base).",
        )


def parameter_names(model: nn.Module, names: Sequence[str]) -> dict[str, str]:
    """Return the name in memory for names of a checkpoint, as transformers renames them on loading.

    Args:
        model: without wrappers.
        names: as in the files of a checkpoint.

    Raises:
        ModelError: the model has no such parameter, or makes it of several tensors.
    """
    return _names_in(model, _parameters(model), names)


def _names_in(model: nn.Module, parameters: dict[str, nn.Parameter], names: Sequence[str]) -> dict[str, str]:
    found = {name: name for name in names if name in parameters}
    if len(found) < len(names) and hasattr(model, "base_model_prefix"):
        missing = [name for name in names if name not in found]
        for origin in find_origins(missing, model, dict[str, Tensor](parameters)):
            if origin.converter is None:
                found[origin.only] = origin.target
    for name in names:
        if name not in found:
            raise ModelError(
                f"model must have every weight of the adapter, got a {type(model).__name__} without {name}.",
                hint="Take the base model of the adapter.",
            )
    return found


def checkpoint_names(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Return the names that `save_pretrained` writes for parameters of a model.

    Args:
        model: without wrappers.
        names: in memory.

    Raises:
        ModelError: transformers splits or converts a parameter when it saves the model.
    """
    if not hasattr(model, "base_model_prefix"):
        return {name: name for name in names}
    from transformers.core_model_loading import revert_weight_conversion

    saved: dict[str, str] = {}
    for name in names:
        blank = torch.empty(model.get_parameter(name).shape, device="meta")
        reverted = revert_weight_conversion(model, {name: blank})  # type: ignore[arg-type]
        if len(reverted) != 1 or next(iter(reverted.values())).shape != blank.shape:
            raise ModelError(
                f"trained weights must be stored unchanged in a checkpoint for an adapter, got {name}, which "
                "transformers converts on loading.",
                hint="Leave its role out of S2FTConfig(roles=...).",
            )
        saved[name] = next(iter(reverted))
    # Some patterns match more names in one direction than in the other: what is not found again keeps its name.
    back = {
        origin.only: origin.target
        for origin in find_origins(list(saved.values()), model, dict[str, Tensor](_parameters(model)))
    }
    return {name: other if back.get(other) == name else name for name, other in saved.items()}


def check_patchable(model: nn.Module) -> None:
    """Reject models of which an adapter cannot change the weights.

    Raises:
        ValueError: no model in memory, a compiled one, or one with S2FT on it.
        ModelError: adapters of PEFT, quantized, sharded or offloaded weights.
    """
    check_model(model)
    if any("_orig_mod" in module._modules or module._compiled_call_impl is not None for module in model.modules()):
        raise ValueError(
            "model must not be compiled for an adapter, got one under torch.compile, whose graphs may contain the "
            "previous weights. Merge the adapter first, and compile the model afterwards."
        )
    check_plain(unwrapped(model))


def check_untied(parameters: Mapping[str, nn.Parameter], names: Iterable[str]) -> None:
    """Reject parameters that several modules share.

    Args:
        parameters: of the model, under all their names.
        names: of the parameters that an adapter patches.

    Raises:
        ModelError: with the names of the parameter.
    """
    owners: dict[nn.Parameter, list[str]] = defaultdict(list)
    for name, parameter in parameters.items():
        owners[parameter].append(name)
    for name in names:
        shared = owners[parameters[name]]
        if len(shared) > 1:
            raise ModelError(
                f"weights must belong to one layer for an adapter, got one that is both {' and '.join(shared)}.",
                hint="Save the whole model instead.",
            )


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters(remove_duplicate=False))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

"""Find the parts of DeepSpeed's flat tensors that belong to single parameters.

ZeRO joins the parameters of a group in one flat float32 tensor, of which each process holds a part, and gives that to
the optimizer. Private attributes of DeepSpeed say where a parameter lies in it. Only this file reads them, and compares
all that it finds with the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hf_farms.blocks.partitioned import is_partitioned, whole_numel
from hf_farms.errors import HfFarmsError
from hf_farms.processes import Ranks, all_rank_results

__all__ = ["FlatTensors", "Fragment", "FragmentError", "find_fragments"]


class FragmentError(HfFarmsError):
    """Parameters that were not found in the flat tensors."""


class Fragment(NamedTuple):
    """A parameter's part of a flat tensor of this process, `flat[start:stop]`."""

    start: int
    stop: int
    parameter: nn.Parameter


class FlatTensors(NamedTuple):
    """The flat tensors of this process.

    Attributes:
        fragments: of each flat tensor, in order; they do not overlap.
        groups: number of the optimizer's group of each flat tensor.
        parameter_groups: number of the optimizer's group of each trained parameter, also of those of other processes.
    """

    fragments: dict[Tensor, list[Fragment]]
    groups: dict[Tensor, int]
    parameter_groups: dict[nn.Parameter, int]


def find_fragments(
    zero: Any, optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter], ranks: Ranks
) -> FlatTensors:
    """Find the fragments of the trained parameters, compare them with the weights, and check that none is missing.

    All processes call it together.

    Args:
        zero: the optimizer of DeepSpeed.
        optimizer: the torch optimizer inside.
        named: the trained parameters.
        ranks: the processes.

    Raises:
        FragmentError: on all processes, if one of them finds anything else than expected.
    """
    found = FlatTensors({}, {}, {})

    def search() -> dict[str, tuple[int, int | None]]:
        try:
            return _search(zero, optimizer, named, found)
        except FragmentError:
            raise
        except Exception as error:  # private attributes may be gone, or mean something else
            raise FragmentError(f"{type(error).__name__}: {error}") from error

    lengths = all_rank_results(search, ranks)
    for name, parameter in named.items():
        if sum(own[name][0] for own in lengths) < whole_numel(parameter):
            raise FragmentError(f"the flat tensors do not hold all of {name}")
        numbers = [number for own in lengths if (number := own[name][1]) is not None]
        found.parameter_groups[parameter] = numbers[0]
    return found


def _search(
    zero: Any, optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter], found: FlatTensors
) -> dict[str, tuple[int, int | None]]:
    """Add the flat tensors to `found`; return how many elements of a parameter this process has, and their group."""
    found.groups.update(_group_numbers(zero, optimizer))
    lengths: dict[str, tuple[int, int | None]] = {}
    for name, parameter in named.items():
        lengths[name] = (0, None)
        if (place := _place(zero, optimizer, parameter)) is None:
            continue
        flat, start, values = place
        _compare(name, flat.detach()[start : start + len(values)], values)
        found.fragments.setdefault(flat, []).append(Fragment(start, start + len(values), parameter))
        lengths[name] = (len(values), found.groups[flat])
    for own in found.fragments.values():
        own.sort(key=lambda fragment: fragment.start)
        if any(one.stop > other.start for one, other in pairwise(own)):
            raise FragmentError("parameters overlap in a flat tensor")
    return lengths


def _place(zero: Any, optimizer: torch.optim.Optimizer, parameter: Any) -> tuple[Tensor, int, Tensor] | None:
    """Return the flat tensor with a part of a parameter, where it starts, and the values of the weight there."""
    if is_partitioned(parameter):
        number, start, length = zero.grad_position[zero.get_param_id(parameter)]
        # The parts of all processes have the same length; the last one is padded.
        return zero.fp32_partitioned_groups_flat[number], start, parameter.ds_tensor.detach().flatten()[:length]
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    flats = [flat for group in optimizer.param_groups for flat in group["params"]]
    own, address = mapping.lp_fragment_address, mapping.hp_fragment_address
    if own.numel != address.numel:
        raise FragmentError(f"fragments of {own.numel} and {address.numel} elements")
    values = parameter.detach().flatten()[own.start : own.start + own.numel]
    return flats[mapping.param_group_index], address.start, values


def _compare(name: str, part: Tensor, values: Tensor) -> None:
    part = part.to(device=values.device, dtype=values.dtype)
    if part.shape != values.shape or not bool(((part == values) | (part.isnan() & values.isnan())).all()):
        raise FragmentError(f"the flat tensors have other values than {name}")


def _group_numbers(zero: Any, optimizer: torch.optim.Optimizer) -> dict[Tensor, int]:
    """Return the number of the group of each flat tensor; ZeRO-3 puts it into the group in the step only."""
    if hasattr(zero, "sub_group_to_group_id"):
        flats = zero.fp32_partitioned_groups_flat
        return {flat: zero.sub_group_to_group_id[number] for number, flat in enumerate(flats)}
    return {flat: number for number, group in enumerate(optimizer.param_groups) for flat in group["params"]}

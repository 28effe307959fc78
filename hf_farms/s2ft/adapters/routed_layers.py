"""The layers that the adapters of a router patch, checked, with the differences of all adapters as stacks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_farms.errors import ModelError
from hf_farms.s2ft.adapters.channels import sampled
from hf_farms.s2ft.adapters.patches import S2FTAdapter, Side, WeightPatch, fingerprint
from hf_farms.s2ft.adapters.routed_batches import check_text_layer
from hf_farms.s2ft.adapters.routed_products import Stack
from hf_farms.s2ft.adapters.targets import resolve
from hf_farms.s2ft.base_slices import same_bits
from hf_farms.s2ft.checks import check_module

__all__ = ["Id", "RoutedLayer", "routed_layers"]

Id = str | int


@dataclass(frozen=True)
class BaseSlice:
    """The part of a weight that one adapter was made for.

    Attributes:
        adapter: its id.
        dim: of the channels in the stored weight.
        indices: `(s,)`.
        fingerprint: of the slice of the base.
    """

    adapter: Id
    dim: int
    indices: Tensor
    fingerprint: str

    def of(self, weight: Tensor) -> Tensor:
        """Return the slice of a weight, on the CPU."""
        return weight.detach().index_select(self.dim, self.indices.to(weight.device)).cpu().contiguous()


class RoutedLayer:
    """A layer with patches of at least one adapter.

    Attributes:
        name: of the weight.
        path: of the layer in the model.
        module: Linear or Conv1D.
        stacks: one for each side that adapters patch.

    Args:
        name: of the weight.
        path: of the layer in the model.
        module: the layer.
        patches: by position of the adapter, with its id.
    """

    def __init__(self, name: str, path: str, module: nn.Module, patches: Mapping[int, tuple[Id, WeightPatch]]) -> None:
        self.name, self.path, self.module = name, path, module
        self.slices = [
            BaseSlice(name, patch.dim, patch.indices, patch.base_fingerprint) for name, patch in patches.values()
        ]
        self.stacks: list[Stack] = []
        self._dtype, self._version = self.weight.dtype, _version(self.weight)
        self._places = _places(self.slices)
        self._sample = self._sampled()
        by_side: dict[Side, dict[int, tuple[BaseSlice, WeightPatch]]] = defaultdict(dict)
        for (position, (_, patch)), base in zip(patches.items(), self.slices, strict=True):
            _check_slice(name, base, base.of(self.weight), patch)
            by_side[patch.side][position] = base, patch
        for side, chosen in by_side.items():
            self.stacks.append(_stack(self.weight, side, chosen))

    @property
    def weight(self) -> Tensor:
        """The weight as it is now."""
        weight: Tensor = self.module.weight  # type: ignore[assignment]
        return weight

    def follow(self) -> None:
        """Check that the weight is still that of the base, and move the stacks to its device.

        Raises:
            ModelError: cast, or changed where an adapter has its channels.
        """
        weight = self.weight
        if weight.dtype != self._dtype:
            raise ModelError(
                f"the model must keep its dtype under a router, got {weight.dtype} instead of {self._dtype} in "
                f"{self.name}.",
                hint="Remove the router, and make a new one of adapters in that dtype.",
            )
        # Not all writes are counted by the version.
        if _version(weight) != self._version or not all(map(same_bits, self._sampled(), self._sample)):
            for base in self.slices:
                _check_slice(self.name, base, base.of(weight))
            self._version = _version(weight)
        self.stacks = [stack.to(weight.device) for stack in self.stacks]

    def _sampled(self) -> list[Tensor]:
        """Return a few entries of each channel that an adapter patches, on the CPU."""
        return [sampled(self.weight, dim, indices).cpu() for dim, indices in self._places.items()]

    def check_unchanged(self) -> None:
        """Refuse a weight that was written or replaced since `follow`, without reading it."""
        if _version(self.weight) != self._version:
            raise ModelError(
                f"weights must stay as they are inside router.using(...), got a change of {self.name}.",
                hint="Merge, load and train outside of it.",
            )


def routed_layers(model: nn.Module, adapters: Mapping[Id, S2FTAdapter]) -> list[RoutedLayer]:
    """Return the layers that adapters patch.

    Raises:
        ValueError: S2FT is on the model, or it is compiled.
        ModelError: as `find_targets`; layers that are not plain or not of the text model, weights that are not those of
            the base.
    """
    modules: dict[str, tuple[str, nn.Module]] = {}
    patches: dict[str, dict[int, tuple[Id, WeightPatch]]] = defaultdict(dict)
    for position, (adapter, content) in enumerate(adapters.items()):
        for name, (parameter, module, _) in resolve(model, content).items():
            path = parameter.rpartition(".")[0]
            check_module(module, path)
            check_text_layer(model, path)
            modules[name] = path, module
            patches[name][position] = adapter, content.patches[name]
    return [RoutedLayer(name, path, module, patches[name]) for name, (path, module) in modules.items()]


def _places(slices: Sequence[BaseSlice]) -> dict[int, Tensor]:
    """Return the channels of all slices by dimension, each once."""
    by_dim: dict[int, list[Tensor]] = defaultdict(list)
    for base in slices:
        by_dim[base.dim].append(base.indices)
    return {dim: torch.cat(indices).unique() for dim, indices in by_dim.items()}


def _check_slice(name: str, base: BaseSlice, part: Tensor, patch: WeightPatch | None = None) -> None:
    """Refuse a weight whose slice is not that of the base of an adapter."""
    if fingerprint(part) == base.fingerprint:
        return
    if patch is not None and torch.equal(part, patch.values):
        raise ModelError(
            f"the model must have the weights of the base, got one with {base.adapter!r} merged ({name}).",
            hint="Unmerge it first: adapter.unmerge(model).",
        )
    raise ModelError(
        f"the model must be the base of all adapters, got other weights in {name} than {base.adapter!r} was made for.",
        hint="Load the base model, and unmerge every adapter before.",
    )


def _stack(weight: Tensor, side: Side, patches: Mapping[int, tuple[BaseSlice, WeightPatch]]) -> Stack:
    """Return the differences of one weight and side, padded to the largest number of channels."""
    channels = max(len(patch.indices) for _, patch in patches.values())
    index, deltas = [], []
    for base, patch in patches.values():
        # (s, other): the channels first, as rows.
        change = (patch.values.float() - base.of(weight).float()).to(weight.dtype).movedim(patch.dim, 0)
        missing = channels - len(change)
        index.append(torch.cat([patch.indices, _unused(patch.indices, missing)]))
        deltas.append(nn.functional.pad(change, (0, 0, 0, missing)))
    stacked = torch.stack(index).to(weight.device), torch.stack(deltas).to(weight.device)
    return Stack(side, tuple(patches), *stacked)


def _unused(indices: Tensor, number: int) -> Tensor:
    """Return the first channels that are not among these, for the padding: no channel may occur twice."""
    free = torch.ones(len(indices) + number, dtype=torch.bool)
    free[indices[indices < len(free)]] = False
    return free.nonzero().flatten()[:number]


def _version(weight: Tensor) -> tuple[int, int, int]:
    """Return a value that changes with the weight."""
    # Tensors made under inference_mode have no counter, and cannot be changed outside of it.
    return id(weight), weight.data_ptr(), 0 if weight.is_inference() else weight._version

"""Remember which adapters were compared with a model, so that changing between them does not read the weights again.

Comparing the channels of an adapter costs as much as writing them. It is needed once: later, the version counter that
torch keeps for every tensor says whether anything else has written to the weight. Fused optimizers and writes through
`.data` are not counted, so that a few entries of each channel are compared in any case (`Channels.are_in`).
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping

from torch import nn

from hf_farms.s2ft.adapters.patches import S2FTAdapter

__all__ = ["COMPARED", "Comparisons", "comparisons_of"]

# Attribute of a model with its Comparisons.
COMPARED = "_hf_farms_compared_adapters"


class Comparisons:
    """Adapters whose base was compared with the weights of one model, and when their weights were last written.

    A copy of the model begins with none: its tensors are others.
    """

    def __init__(self) -> None:
        self._fitting: weakref.WeakSet[S2FTAdapter] = weakref.WeakSet()
        self._written: dict[str, tuple[int, int]] = {}
        self._merged: weakref.ref[S2FTAdapter] | None = None

    def __reduce__(self) -> tuple[type[Comparisons], tuple[()]]:
        return Comparisons, ()

    def is_untouched(self, parameters: Mapping[str, nn.Parameter]) -> bool:
        """Return whether an adapter was the last to write to each of these parameters."""
        return all(
            name in self._written and _is_counted(parameter) and self._written[name] == _state(parameter)
            for name, parameter in parameters.items()
        )

    def has_merged(self, adapter: S2FTAdapter, parameters: Mapping[str, nn.Parameter]) -> bool:
        """Return whether this very adapter is merged, and its parameters have not been written since."""
        return self._merged is not None and self._merged() is adapter and self.is_untouched(parameters)

    def fits(self, adapter: S2FTAdapter, parameters: Mapping[str, nn.Parameter]) -> bool:
        """Return whether the adapter contains the base of these parameters, by an earlier comparison."""
        return adapter in self._fitting and self.is_untouched(parameters)

    def forget_if_touched(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Forget all comparisons if something else has written to one of the parameters: call it before a write."""
        known = {name: parameter for name, parameter in parameters.items() if name in self._written}
        if not self.is_untouched(known):
            self.__init__()  # type: ignore[misc]

    def note(self, merged: S2FTAdapter | None, parameters: Mapping[str, nn.Parameter]) -> None:
        """Note the merged adapter, which was compared, and that these parameters were written."""
        self._written |= {name: _state(parameter) for name, parameter in parameters.items() if _is_counted(parameter)}
        self._merged = None if merged is None else weakref.ref(merged)
        if merged is not None and all(patch.base is not None for patch in merged.patches.values()):
            self._fitting.add(merged)


def comparisons_of(model: nn.Module) -> Comparisons:
    """Return the comparisons of a model, without wrappers, or new ones that are not on the model yet."""
    found: Comparisons = model.__dict__.get(COMPARED) or Comparisons()
    return found


def _state(parameter: nn.Parameter) -> tuple[int, int]:
    return parameter.data_ptr(), parameter._version


def _is_counted(parameter: nn.Parameter) -> bool:
    """Return whether torch counts the writes to a tensor: not for those made in inference mode."""
    return not parameter.is_inference()

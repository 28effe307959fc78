"""A model with its coupled structures: what S2FT chooses from, scores and changes."""

from __future__ import annotations

from functools import cached_property

from torch import nn

from hf_farms.blocks import LayerMetadata, ModelBlockSource
from hf_farms.blocks.coupling import Structure, coupled_structures
from hf_farms.config import S2FTConfig

__all__ = ["CoupledModel"]

BlockStructures = list[tuple[Structure, ...]]


class CoupledModel:
    """The blocks of a model and the heads and channels that their layers share.

    Built once for one start of S2FT and handed from choosing over scoring to the change of the model, so that the model
    is searched once.

    Args:
        model: a transformers model, also inside a wrapper.
        config: its roles and layout determine the units.

    Attributes:
        model: as given.
        config: as given.
        source: the blocks of the model inside the wrappers.
        structures: for each block the structures with a trained role. Under grouped-query attention their units are
            whole groups of heads if k or v, which a group shares, are trained or moved, else query heads.

    Raises:
        ModelError: the model has no blocks.
    """

    def __init__(self, model: nn.Module, config: S2FTConfig) -> None:
        self.model, self.config = model, config
        self.source = ModelBlockSource(model)
        self._units_are_groups = config.layout == "permuted" or bool({"k", "v"} & set(config.roles))
        self._all_structures = self._find(whole_groups=self._units_are_groups)
        self.structures: BlockStructures = [
            tuple(structure for structure in structures if structure.trained(config.roles))
            for structures in self._all_structures
        ]

    def _find(self, *, whole_groups: bool) -> BlockStructures:
        return [
            coupled_structures(self.source.metadata(index), self.source.config, whole_groups=whole_groups)
            for index in range(len(self.source))
        ]

    @cached_property
    def grouped(self) -> BlockStructures:
        """All structures of each block, with whole groups of heads as units."""
        return self._all_structures if self._units_are_groups else self._find(whole_groups=True)

    @cached_property
    def coupled_roles(self) -> tuple[str, ...]:
        """The roles that belong to a structure of `config`'s units, in the order of the model."""
        return _roles(self._all_structures)

    @cached_property
    def trainable_roles(self) -> tuple[str, ...]:
        """The roles that S2FT can train, in the order of the model."""
        return _roles(self.grouped)

    @cached_property
    def layers(self) -> dict[str, LayerMetadata]:
        """The layers of all blocks by name."""
        source = self.source
        return {layer.name: layer for index in range(len(source)) for layer in source.metadata(index).layers}


def _roles(blocks: BlockStructures) -> tuple[str, ...]:
    members = (member for structures in blocks for structure in structures for member in structure.members)
    return tuple(dict.fromkeys(member.layer.role for member in members))

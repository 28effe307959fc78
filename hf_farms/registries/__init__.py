"""Registries of named choices. The command line, configs, reports and cards know a choice only by its entry.

base.py                Entry, Registry, and the import of the function that an entry names
methods.py             METHODS: rules that choose the weights to remove
allocations.py         ALLOCATIONS: rules that distribute sparsity across blocks
refinements.py         REFINEMENTS: ways to improve the mask of a method
fits.py                FITS: rules for the start of the tail of a spectrum
lr_maps.py             LR_MAPS: maps from alphas to factors on the learning rate
strategies.py          STRATEGIES: scores of heads and channels for the selection of S2FT
recoveries.py          RECOVERIES: ways to adjust the kept weights after pruning
combinations.py        COMBINATIONS: rules that make one adapter of S2FT of several
checkpoint_formats.py  CHECKPOINT_FORMATS: file formats of models
"""

from hf_farms.registries.allocations import ALLOCATIONS, AllocationEntry
from hf_farms.registries.base import Entry, Needs, Registry, load
from hf_farms.registries.checkpoint_formats import CHECKPOINT_FORMATS, FormatEntry
from hf_farms.registries.combinations import COMBINATIONS, CombinationEntry
from hf_farms.registries.fits import FITS, FitEntry
from hf_farms.registries.lr_maps import LR_MAPS, LRMapEntry
from hf_farms.registries.methods import METHODS, MethodEntry
from hf_farms.registries.recoveries import RECOVERIES, RecoveryEntry
from hf_farms.registries.refinements import REFINEMENTS, RefinementEntry
from hf_farms.registries.strategies import STRATEGIES, StrategyEntry

__all__ = [
    "ALLOCATIONS",
    "CHECKPOINT_FORMATS",
    "COMBINATIONS",
    "FITS",
    "LR_MAPS",
    "METHODS",
    "RECOVERIES",
    "REFINEMENTS",
    "STRATEGIES",
    "AllocationEntry",
    "CombinationEntry",
    "Entry",
    "FitEntry",
    "FormatEntry",
    "LRMapEntry",
    "MethodEntry",
    "Needs",
    "RecoveryEntry",
    "RefinementEntry",
    "Registry",
    "StrategyEntry",
    "load",
]

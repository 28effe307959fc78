"""Choices by name. An entry of a registry is all that the command line, configs, reports and cards know of a choice.

base.py                Entry, Registry, and the import of the function that an entry names
methods.py             METHODS: rules that choose the weights to remove
"""

from hf_farms.registries.base import Entry, Needs, Registry, load
from hf_farms.registries.methods import METHODS, Method

__all__ = ["METHODS", "Entry", "Method", "Needs", "Registry", "load"]

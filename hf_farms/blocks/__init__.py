"""Model or checkpoint -> blocks, and the layers in each: the only package that knows architectures.

layouts.py names layers and splits fused weights, discovery.py finds the blocks, views.py reads and writes a layer,
source.py walks a model in memory, stored.py a checkpoint on disk.
"""

from hf_farms.blocks.source import Block, BlockCalls, BlockSource, ModelBlockSource
from hf_farms.blocks.views import BlockMetadata, LayerMetadata, LayerView, Part

__all__ = [
    "Block",
    "BlockCalls",
    "BlockMetadata",
    "BlockSource",
    "LayerMetadata",
    "LayerView",
    "ModelBlockSource",
    "Part",
]

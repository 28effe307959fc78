"""Model or checkpoint -> blocks, and the layers in each: the only package that knows architectures.

layouts.py names layers and splits fused weights, discovery.py finds the blocks, views.py reads and writes a layer,
source.py walks a model in memory, stored.py a checkpoint on disk with the tensors that tensors.py finds in its files.
"""

from hf_farms.blocks.source import Block, BlockCalls, BlockReader, BlockSource, ModelBlockSource
from hf_farms.blocks.stored import StoredBlockReader
from hf_farms.blocks.tensors import TensorFiles
from hf_farms.blocks.views import BlockMetadata, LayerMetadata, LayerView, Part

__all__ = [
    "Block",
    "BlockCalls",
    "BlockMetadata",
    "BlockReader",
    "BlockSource",
    "LayerMetadata",
    "LayerView",
    "ModelBlockSource",
    "Part",
    "StoredBlockReader",
    "TensorFiles",
]

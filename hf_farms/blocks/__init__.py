"""Model or checkpoint -> blocks, and the layers in each: the only package that knows architectures.

layouts.py     what architectures call their layers, and how they fuse them
discovery.py   where the blocks are, and the layers in them
views.py       what a layer is, whatever parameter holds it
listening.py   what a layer is multiplied with
stores.py      a layer's weight in memory: plain, quantised, or with adapters
protocols.py   a block, how a model calls it, and what hands out blocks
arguments.py   what blocks are called with, and what they return
chain.py       whether blocks can be run one after another
running.py     the blocks of a model, run one after another as the model runs them
wrappers.py    what may be around a model or its modules
adapters.py    what adapters of PEFT make of a weight
in_memory.py   the blocks of a model in memory
tensors.py     the parameters of a checkpoint on disk
origins.py     which tensors on disk a parameter is made of
stored.py      the blocks of a checkpoint on disk, to be read
streaming.py   the blocks of a checkpoint on disk, to be run and changed
"""

from hf_farms.blocks.checkpoint_tensors import StoredTensors, TensorFiles
from hf_farms.blocks.in_memory import ModelBlockSource
from hf_farms.blocks.inputs import TokenMask
from hf_farms.blocks.layers import BlockMetadata, LayerMetadata, LayerView, Part
from hf_farms.blocks.on_disk import StoredBlockReader
from hf_farms.blocks.protocols import (
    Block,
    BlockCall,
    BlockCalls,
    BlockReader,
    BlockResults,
    BlockSource,
    Record,
)
from hf_farms.blocks.streaming import StreamedBlockSource, align_weights
from hf_farms.blocks.weights import count_zeros
from hf_farms.blocks.wrappers import plain_name, unwrapped

__all__ = [
    "Block",
    "BlockCall",
    "BlockCalls",
    "BlockMetadata",
    "BlockReader",
    "BlockResults",
    "BlockSource",
    "LayerMetadata",
    "LayerView",
    "ModelBlockSource",
    "Part",
    "Record",
    "StoredBlockReader",
    "StoredTensors",
    "StreamedBlockSource",
    "TensorFiles",
    "TokenMask",
    "align_weights",
    "count_zeros",
    "plain_name",
    "unwrapped",
]

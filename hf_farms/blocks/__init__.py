"""Split a model or checkpoint into blocks and layers: the only package that knows architectures.

layouts.py             names and fused projections per architecture
discovery.py           find the blocks of a model
block_layers.py        find the layers of a block
routers.py             find the routers of mixture-of-experts blocks
layers.py              LayerView: read and write one layer, whatever parameter holds it
inputs.py              record the inputs of a layer
weights.py             weights in memory: plain, quantized, or with PEFT adapters
adapters.py            weights with PEFT adapters applied
partitioned.py         parameters that ZeRO-3 of DeepSpeed has partitioned
wrappers.py            DDP, FSDP, torch.compile and PEFT wrappers
protocols.py           Block, BlockCall, and the interfaces BlockReader and BlockSource
arguments.py           arguments and outputs of blocks
chain.py               check that the blocks of a model can be run in sequence
activation_checks.py   compare activations of single blocks with those of the model
running.py             run the blocks of a model in sequence
in_memory.py           blocks of a model in memory
tensor_files.py        tensors in safetensors and pickled files
checkpoint_tensors.py  parameters of a checkpoint on disk
origins.py             map parameters to the tensors on disk
on_disk.py             blocks of a checkpoint on disk, read only
streaming.py           blocks of a checkpoint on disk, one at a time in memory, writable
unsaved_tensors.py     parameters and buffers that no file holds
coupling.py            layers that share heads or channels
"""

from typing import TYPE_CHECKING

from hf_farms.blocks.checkpoint_tensors import StoredTensors
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
from hf_farms.blocks.tensor_files import TensorFiles
from hf_farms.blocks.weights import count_zeros
from hf_farms.blocks.wrappers import plain_name, unwrapped
from hf_farms.files.moved_names import moved

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

if not TYPE_CHECKING:
    __getattr__ = moved(__name__, {"KeptTokens": "hf_farms.blocks.TokenMask"})

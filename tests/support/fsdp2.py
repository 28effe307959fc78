"""FSDP2 on a CPU: accelerate shards on accelerators only, and makes DDP of it on a CPU without a word."""

import os

import pytest
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import fully_shard
from trainers import same
from transformers import TrainerCallback

from hf_farms.blocks.wrappers import plain_name
from hf_farms.callbacks.trainer import unwrap_optimizer
from hf_farms.s2ft.surgery import base_of

# Each process needs a GPU of its own, where there is one.
NEEDS_FSDP2 = pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event") or torch.cuda.device_count() == 1,
    reason="FSDP2 of this torch needs a GPU for each process",
)
RANK, COUNT = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))


def sharded(model):
    """Shard each block, and the rest of the model."""
    blocks = model.model.layers if hasattr(model, "model") else model.transformer.h
    for block in blocks:
        fully_shard(block)
    fully_shard(model)
    return model


def told_of_fsdp2(run, **options):
    """Tell a Trainer that this is FSDP2: it and accelerate then prepare, save and load as they do on accelerators."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")  # accelerate does so for several processes only
    state, run.is_fsdp_enabled = run.accelerator.state, True
    # Every AcceleratorState copies the state of the process again.
    state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
        **options,
    )
    return run


def whole(model):
    """All parameters, the slices too, gathered."""
    return {plain_name(name): full(parameter.detach()).clone() for name, parameter in model.named_parameters()}


def full(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def optimizer_state(run):
    """The states of the optimizer by name of the parameter, gathered."""
    names = {parameter: plain_name(name) for name, parameter in run.model.named_parameters()}
    states = unwrap_optimizer(run.optimizer).state
    return {f"{names[p]}/{key}": full(value).clone() for p, state in states.items() for key, value in state.items()}


def trained_state(run):
    """What a resumed training must have: parameters, states of the optimizer, base of the adapter."""
    base = {name: part.values for name, part in base_of(run.model).slices.items()}
    return {"weights": whole(run.model), "optimizer": optimizer_state(run), "base": base}


def same_state(a, b):
    return all(a[part].keys() == b[part].keys() and same(a[part], b[part]) for part in a)


class AtTheStart(TrainerCallback):
    """Keeps the state with which a training begins, after the callbacks before it."""

    def of(self, run):
        self.run = run
        return self

    def on_train_begin(self, *args, **kwargs):
        self.state = trained_state(self.run)

"""Adapters with random differences, made without any training."""

import torch
from transformers.pytorch_utils import Conv1D

from hf_farms.blocks import ModelBlockSource
from hf_farms.s2ft.adapters.patches import S2FTAdapter, WeightPatch, fingerprint

INPUT_ROLES = ("o", "down")


def random_patch(model, name, *, side, indices, scale, generator, include_base=True):
    """A patch of one weight, whose channels move by random differences."""
    weight = model.get_parameter(name).detach()
    conv = isinstance(model.get_submodule(name.rpartition(".")[0]), Conv1D)
    dim = int((side == "inputs") != conv)
    index = torch.as_tensor(sorted(indices))
    base = weight.index_select(dim, index.to(weight.device)).cpu().contiguous()
    change = scale * torch.randn(base.shape, generator=generator)
    return WeightPatch(
        name=name,
        shape=tuple(weight.shape),
        side=side,
        dim=dim,
        indices=index,
        values=(base.float() + change).to(base.dtype),
        base=base if include_base else None,
        base_fingerprint=fingerprint(base),
    )


def random_adapter(
    model, seed=0, *, roles=INPUT_ROLES, channels=(1, 6), blocks=None, scale=0.1, exclude=(), include_base=True, **known
):
    """An adapter of random channels, between `channels` of them for each weight of these roles.

    Args:
        model: a plain model.
        seed: of channels and differences.
        roles: of the layers; inputs of o and down, outputs of the others.
        channels: smallest and largest number of channels of a weight.
        blocks: positions of the blocks; None for all.
        scale: of the differences.
        exclude: adapters that share no channel with the new one.
        include_base: whether the slices of the base are kept.
        known: other fields of the adapter.
    """
    generator = torch.Generator().manual_seed(seed)
    source = ModelBlockSource(model)
    patches = {}
    for block in range(len(source)) if blocks is None else blocks:
        for layer in source.metadata(block).layers:
            if layer.role not in roles or layer.parameter in patches:
                continue
            side = "inputs" if layer.role in INPUT_ROLES else "outputs"
            weight = model.get_parameter(layer.parameter)
            conv = isinstance(model.get_submodule(layer.parameter.rpartition(".")[0]), Conv1D)
            size = weight.shape[int((side == "inputs") != conv)]
            taken = {int(i) for other in exclude for i in getattr(other.patches.get(layer.parameter), "indices", ())}
            free = [i for i in torch.randperm(size, generator=generator).tolist() if i not in taken]
            number = int(torch.randint(channels[0], channels[1] + 1, (), generator=generator))
            patches[layer.parameter] = random_patch(
                model,
                layer.parameter,
                side=side,
                indices=free[:number],
                scale=scale,
                generator=generator,
                include_base=include_base,
            )
    return S2FTAdapter(patches=patches, dtype=next(model.parameters()).dtype, **known)


def merged(model, adapter):
    """Write the values of an adapter into the weights of a model, in place: the obvious twin of a merge."""
    with torch.no_grad():
        for patch in adapter.patches.values():
            model.get_parameter(patch.name).index_copy_(patch.dim, patch.indices, patch.values)
    return model

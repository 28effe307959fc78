"""Make an adapter: of a model that S2FT has trained, or of a model and its base."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_farms.blocks.model_checks import check_model
from hf_farms.blocks.partitioned import whole_shape
from hf_farms.blocks.wrappers import unwrapped
from hf_farms.errors import ModelError
from hf_farms.privacy.publishing import published_path
from hf_farms.s2ft.adapters.files import BASE_MODEL, is_printed
from hf_farms.s2ft.adapters.patches import S2FTAdapter, WeightPatch, fingerprint
from hf_farms.s2ft.adapters.targets import check_patchable, check_untied, checkpoint_names
from hf_farms.s2ft.base_slices import StoredSlice, bits, same_bits, slices_as_stored, take
from hf_farms.s2ft.surgery import base_of, selection_of

__all__ = ["adapter_of_difference", "adapter_of_model", "adapter_of_pairs"]


def adapter_of_model(model: nn.Module) -> S2FTAdapter:
    """Make the adapter of a model that S2FT trains or has trained; see `S2FTAdapter.from_model`."""
    check_model(model)
    kept, inner = base_of(model), unwrapped(model)
    if kept is None:
        raise ValueError(
            f"model must have S2FT on it, or have been restored from it, got a plain {type(model).__name__}. Compare "
            "it with its base: S2FTAdapter.from_training(model, base)."
        )
    trained = selection_of(model) is not None or selection_of(inner) is not None
    current = slices_as_stored(inner) if trained else {}
    names = checkpoint_names(inner, kept.slices)
    patches = []
    for name, base in kept.slices.items():
        parameter = inner.get_parameter(name)
        now = current[name].values if trained else take(parameter, base.dim, base.indices).cpu()
        patches.append(_patch(names[name], whole_shape(parameter), base, now, base.values.to(now.dtype)))
    adapter = _adapter(inner, patches, selection=kept.selection.config, channels=dict(kept.selection.channels))
    # The published base is without the earlier training.
    return adapter if kept.is_original else replace(adapter, base_model=None, base_revision=None)


def adapter_of_difference(model: nn.Module, base: nn.Module) -> S2FTAdapter:
    """Make the adapter that turns one model into another; see `S2FTAdapter.from_training`."""
    for each in (model, base):
        check_patchable(each)
    tuned, plain = unwrapped(model), unwrapped(base)
    return adapter_of_pairs(tuned, plain, _pairs(tuned, plain))


def adapter_of_pairs(tuned: nn.Module, plain: nn.Module, pairs: Iterable[tuple[str, Tensor, Tensor]]) -> S2FTAdapter:
    """Make the adapter of two models whose tensors are read one by one.

    Args:
        tuned: the trained model, without wrappers; its weights are not read.
        plain: its base; only its config is read.
        pairs: names of all tensors in memory, with the new and the old one.

    Raises:
        ModelError: as `S2FTAdapter.from_training`.
    """
    _check_same_ties(tuned, plain)
    found: dict[str, tuple[StoredSlice, Tensor, torch.Size]] = {}
    parameters = dict(tuned.named_parameters(remove_duplicate=False))
    different: list[str] = []
    compared = changed = outside = whole = 0
    first = ""
    for name, new, old in pairs:
        compared += 1
        if same_bits(new, old):
            continue
        different.append(name)
        differs = (bits(new) != bits(old)).reshape(new.shape)
        count = int(differs.sum())
        changed += count
        slices = _changed_channels(tuned, name, new, differs)
        if slices is None:
            outside, whole, first = outside + count, whole + 1, first or name
        else:
            found[name] = slices, take(old, slices.dim, slices.indices).cpu(), new.shape
    if not changed:
        raise ModelError(
            f"model must differ from its base, got two {type(tuned).__name__} with equal weights.",
            hint="Pass the trained model and the model that its training started from.",
        )
    if whole > compared / 2:
        raise ModelError(
            f"models must differ in whole channels of linear layers only, got changes in almost all channels of "
            f"{whole} of {compared} tensors: the difference is no adapter of S2FT.",
            hint="Pass the model that the training started from as base, or save the whole model.",
        )
    check_untied(parameters, (name for name in different if name in parameters))
    if outside:
        raise ModelError(
            f"models must differ in whole channels of linear layers only, got {outside / changed:.1%} of the changed "
            f"weights outside of such channels, in {first} among others.",
            hint="Save the whole model, or train with S2FT from the start.",
        )
    names = checkpoint_names(tuned, found)
    patches = [_patch(names[name], shape, part, part.values, before) for name, (part, before, shape) in found.items()]
    return _adapter(plain, patches)


def _check_same_ties(tuned: nn.Module, plain: nn.Module) -> None:
    """Reject models of which one has a weight twice that the other one shares: it is compared under one name only.

    Models of other names or shapes are left to the comparison, which names these.
    """
    shapes = [
        {name: parameter.shape for name, parameter in model.named_parameters(remove_duplicate=False)}
        for model in (tuned, plain)
    ]
    if shapes[0] != shapes[1]:
        return
    ties = {name: _ties(model) for name, model in (("model", tuned), ("base", plain))}
    different = sorted(ties["model"] ^ ties["base"], key=sorted)
    if different:
        one, other = ("model", "base") if different[0] in ties["model"] else ("base", "model")
        raise ModelError(
            f"model and base must tie the same weights, got a {one} that ties {' and '.join(sorted(different[0]))} and "
            f"a {other} that does not.",
            hint="Load both with the same tie_word_embeddings in their configs.",
        )


def _ties(model: nn.Module) -> set[frozenset[str]]:
    """Return the names of each parameter that has several."""
    names: dict[nn.Parameter, set[str]] = defaultdict(set)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[parameter].add(name)
    return {frozenset(tied) for tied in names.values() if len(tied) > 1}


def _pairs(tuned: nn.Module, plain: nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield the tensors of two models that their checkpoints have, each once.

    Raises:
        ModelError: other names, shapes or dtypes.
    """
    parameters, known = dict(tuned.named_parameters()), dict(tuned.named_parameters(remove_duplicate=False))
    new, old = tuned.state_dict(), plain.state_dict()
    if new.keys() != old.keys():
        raise ModelError(
            f"models must have the same weights by name, got {type(tuned).__name__} and {type(plain).__name__}, which "
            f"differ in {sorted(new.keys() ^ old.keys())[0]}.",
            hint="Pass the model that the training started from.",
        )
    for name, tensor in new.items():
        other = old[name]
        if tensor.shape != other.shape or tensor.dtype != other.dtype:
            raise ModelError(
                f"models must have weights of one shape and dtype, got {tuple(tensor.shape)} {tensor.dtype} and "
                f"{tuple(other.shape)} {other.dtype} in {name}.",
                hint="Load both models with the same dtype, and pass the model that the training started from.",
            )
        if name in parameters or name not in known:  # not a second name of a tied weight
            yield name, tensor, other.to(tensor.device)


def _changed_channels(model: nn.Module, name: str, new: Tensor, differs: Tensor) -> StoredSlice | None:
    """Return the channels that contain all changes, on the side where these are less of the weight.

    None: all of it, or not the weight of a linear layer. Rows of an embedding look like output channels, but a LoRA
    of them is not that of a linear layer.
    """
    path, _, attribute = name.rpartition(".")
    module = model.get_submodule(path)
    if attribute != "weight" or not isinstance(module, nn.Linear | Conv1D):
        return None
    transposed = isinstance(module, Conv1D)
    counts: dict[int, Tensor] = {dim: differs.any(1 - dim).nonzero().flatten().cpu() for dim in (0, 1)}
    dim = min(counts, key=lambda dim: (len(counts[dim]) / new.shape[dim], dim != int(not transposed)))
    if len(counts[dim]) == new.shape[dim]:
        return None
    side = "inputs" if dim == int(not transposed) else "outputs"
    return StoredSlice(side, dim, counts[dim], take(new, dim, counts[dim]).cpu())  # type: ignore[arg-type]


def _patch(name: str, shape: tuple[int, ...], part: StoredSlice, values: Tensor, base: Tensor) -> WeightPatch:
    rows, columns = shape
    return WeightPatch(
        name=name,
        shape=(rows, columns),
        side=part.side,
        dim=part.dim,
        indices=part.indices,
        values=values.contiguous(),
        base=base.contiguous(),
        base_fingerprint=fingerprint(base),
    )


def _adapter(model: nn.Module, patches: list[WeightPatch], **options: object) -> S2FTAdapter:
    config = getattr(model, "config", None)
    base = published_path(getattr(config, "_name_or_path", None) or "")
    return S2FTAdapter(
        patches={patch.name: patch for patch in patches},
        base_model=base if is_printed(base, BASE_MODEL) else None,  # another name would not be loaded again
        base_revision=getattr(config, "_commit_hash", None),
        dtype=patches[0].values.dtype,
        **options,  # type: ignore[arg-type]
    )

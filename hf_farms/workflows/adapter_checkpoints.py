"""Adapters and checkpoints on disk: merge an adapter into one, take it out again, make one of two checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from torch import Tensor

from hf_farms.blocks import StoredTensors, TensorFiles
from hf_farms.errors import HfFarmsError, ModelError
from hf_farms.loading import LoadedModel, load_model
from hf_farms.output.new_folder import check_new_folder, new_folder
from hf_farms.progress import Progress, no_progress, one_stage
from hf_farms.s2ft.adapters.checkpoints import StoredCheckpoint, open_checkpoint
from hf_farms.s2ft.adapters.loading import load_adapter
from hf_farms.s2ft.adapters.making import adapter_of_pairs
from hf_farms.s2ft.adapters.patched_files import changes_of
from hf_farms.s2ft.adapters.patches import S2FTAdapter, fingerprint
from hf_farms.s2ft.base_slices import same_bits, take
from hf_farms.workflows.arguments import check_types

__all__ = ["diff_checkpoints", "merge_checkpoint", "unmerge_checkpoint"]


def merge_checkpoint(
    base: str | Path,
    adapter: str | Path,
    output: str | Path,
    *,
    revision: str | None = None,
    progress: Progress = no_progress,
) -> Path:
    """Write a copy of a checkpoint with an adapter merged into it; the model is never loaded.

    The new files have the shards of the base, with its config, tokenizer and license files, and the weights that
    `S2FTAdapter.merge` makes, bit for bit. All checks come before the first write. Memory: the adapter and one weight.

    Args:
        base: the base model of the adapter: `demo`, a folder or a Hub id.
        adapter: a folder or a Hub id.
        output: a new folder, which appears when it is complete.
        revision: of `base` on the Hub.
        progress: called with the shards that are done.

    Returns:
        The new folder.

    Raises:
        ModelError: a model that is not found, has pickled weights, or is not the base of the adapter (with the first
            weight that differs).
        DataError: as `S2FTAdapter.from_pretrained`.
        OutputError: a folder that has files, or that cannot be written.
    """
    check_types(merge_checkpoint, progress=progress, models={"base": base}, adapter=adapter, output=output)
    steps = one_stage(progress, "Merging")
    return _rewritten(base, adapter, output, revision=revision, check=_checked_base, undo=False, progress=steps)


def unmerge_checkpoint(
    model: str | Path,
    adapter: str | Path,
    output: str | Path,
    *,
    revision: str | None = None,
    progress: Progress = no_progress,
) -> Path:
    """Write a copy of a checkpoint without the adapter that was merged into it, which is its base, bit for bit.

    Args:
        model: with the adapter merged: `demo`, a folder or a Hub id.
        adapter: a folder or a Hub id, saved with the slices of its base.
        output: a new folder, which appears when it is complete.
        revision: of `model` on the Hub.
        progress: called with the shards that are done.

    Returns:
        The new folder.

    Raises:
        ModelError: a model into which this adapter is not merged, an adapter without the slices of its base, or as
            `merge_checkpoint`.
        DataError: as `merge_checkpoint`.
        OutputError: as `merge_checkpoint`.
    """
    check_types(unmerge_checkpoint, progress=progress, models={"model": model}, adapter=adapter, output=output)
    steps = one_stage(progress, "Unmerging")
    return _rewritten(model, adapter, output, revision=revision, check=_checked_merged, undo=True, progress=steps)


def diff_checkpoints(
    base: str | Path,
    tuned: str | Path,
    output: str | Path,
    *,
    revision: str | None = None,
    tuned_revision: str | None = None,
    include_base: bool = True,
    progress: Progress = no_progress,
) -> S2FTAdapter:
    """Make an adapter of a fine-tuned checkpoint whose difference to its base lies in whole channels.

    Memory: two tensors at a time, and the adapter.

    Args:
        base: the model that the training started from: `demo`, a folder or a Hub id.
        tuned: the trained model, of the same architecture and dtype; a folder or a Hub id.
        output: a new folder for the adapter.
        revision: of `base` on the Hub.
        tuned_revision: of `tuned` on the Hub.
        include_base: as for `S2FTAdapter.save_pretrained`.
        progress: called with the tensors that are compared.

    Returns:
        The adapter, as `S2FTAdapter.from_training` makes it.

    Raises:
        ModelError: equal models, changes outside whole channels, with their share, or other shapes, names or dtypes.
        OutputError: a folder that has files, or that cannot be written.
    """
    models = {"base": base, "tuned": tuned}
    check_types(diff_checkpoints, progress=progress, models=dict(models), output=output, include_base=include_base)
    reads = {"the model": base, "the model (trained)": tuned}
    check_new_folder(output, reads=reads)
    plain = _streamed(base, revision)
    try:
        trained = _streamed(tuned, tuned_revision)
    except HfFarmsError as error:
        error.hint = error.hint and error.hint.replace("`revision`", "`tuned_revision`")
        raise
    step = one_stage(progress, "Comparing")
    adapter = adapter_of_pairs(trained.model, plain.model, _pairs(trained, plain, step))
    with new_folder(output, reads=reads) as folder:
        adapter.save_pretrained(folder, include_base=include_base)
    return adapter


def _rewritten(
    model: str | Path,
    adapter: str | Path,
    output: str | Path,
    *,
    revision: str | None,
    check: Callable[[S2FTAdapter, StoredCheckpoint], dict[str, str]],
    undo: bool,
    progress: Callable[[int, int], None],
) -> Path:
    """Write a copy of a checkpoint with the slices of an adapter, or of its base, after `check` has accepted both."""
    reads = {"the model": model, "the adapter": adapter}
    check_new_folder(output, reads=reads)
    patch, checkpoint = load_adapter(adapter), open_checkpoint(model, revision=revision)
    changes = changes_of(patch, check(patch, checkpoint), undo=undo)
    checkpoint.write(output, changes, reads=reads, progress=progress)
    return Path(output).expanduser()


def _checked_base(adapter: S2FTAdapter, checkpoint: StoredCheckpoint) -> dict[str, str]:
    """Check that a checkpoint is the base of an adapter; return names on disk by name of the patch."""
    stored, model = {}, checkpoint.model.name
    for patch, name, tensor in checkpoint.read(adapter.patches.values()):
        now = take(tensor, patch.dim, patch.indices)
        if fingerprint(now) != patch.base_fingerprint:
            if same_bits(now, patch.values):
                raise ModelError(
                    f"model must be the base model of the adapter, got {model!r}, which holds the adapter already, in "
                    f"{patch.name}.",
                    hint="Name the base model.",
                )
            known = "" if adapter.base_model is None else f" ({adapter.base_model})"
            raise ModelError(
                f"model must be the base model of the adapter{known}, got {model!r} with other weights in "
                f"{patch.name}.",
                hint="Name the base model, in the `revision` that the training started from.",
            )
        stored[patch.name] = name
    return stored


def _checked_merged(adapter: S2FTAdapter, checkpoint: StoredCheckpoint) -> dict[str, str]:
    """Check that an adapter is merged into a checkpoint; return names on disk by name of the patch."""
    if any(patch.base is None for patch in adapter.patches.values()):
        raise ModelError(
            "adapter must hold the slices of its base to be unmerged, got one that was saved without them "
            "(`include_base=False`).",
            hint="Take the base model itself.",
        )
    stored = {}
    for patch, name, tensor in checkpoint.read(adapter.patches.values()):
        if not same_bits(take(tensor, patch.dim, patch.indices), patch.values):
            raise ModelError(
                f"model must have this adapter merged into it, got {checkpoint.model.name!r} with other weights in "
                f"{patch.name}.",
                hint="Name the merged model, and the adapter that was merged into it last.",
            )
        stored[patch.name] = name
    return stored


def _streamed(model: str | Path, revision: str | None) -> LoadedModel:
    """Open a checkpoint whose tensors are read one by one."""
    return load_model(model, tokenizer=False, stream=True, head=False, revision=revision, device="cpu")


def _pairs(
    tuned: LoadedModel, plain: LoadedModel, step: Callable[[int, int], None]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield the tensors of two checkpoints by name in memory, new and old.

    Raises:
        ModelError: the models have other weights, shapes or dtypes.
    """
    names = [_names(model) for model in (tuned, plain)]
    if different := sorted(set(names[0]) ^ set(names[1])):
        raise ModelError(
            f"models must have the same weights by name, got {type(tuned.model).__name__} and "
            f"{type(plain.model).__name__}, which differ in {different[0]}.",
            hint="Name the model that the training started from.",
        )
    new, old = (StoredTensors(TensorFiles(model.weights), model.model) for model in (tuned, plain))
    for done, name in enumerate(names[0]):
        step(done, len(names[0]))
        if not new.has(name) and not old.has(name):
            continue
        one, other = new.read(name), old.read(name)
        if one.shape != other.shape or one.dtype != other.dtype:
            raise ModelError(
                f"models must have weights of one shape and dtype, got {tuple(one.shape)} {one.dtype} and "
                f"{tuple(other.shape)} {other.dtype} in {name}.",
                hint="Name the model that the training started from, saved in the same dtype.",
            )
        yield name, one, other
    step(len(names[0]), len(names[0]))


def _names(loaded: LoadedModel) -> list[str]:
    """Return the names of all tensors that a checkpoint has, each once."""
    model = loaded.model
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - dict(model.named_parameters()).keys()
    return [name for name in model.state_dict() if name not in tied]

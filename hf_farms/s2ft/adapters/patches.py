"""The contents of an adapter: for each weight the channels that changed, and their new values.

Symbols: m outputs, n inputs, s channels; a weight is `(m, n)`, or `(n, m)` in Conv1D of transformers.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from hf_farms.config import S2FTConfig
from hf_farms.config.checks import check

if TYPE_CHECKING:
    from hf_farms.s2ft.adapters.lora_servers import LoRAExport

__all__ = ["S2FTAdapter", "WeightPatch", "fingerprint"]

Side = Literal["inputs", "outputs"]


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightPatch:
    """New values of whole channels of one weight. All tensors are on the CPU and contiguous.

    Attributes:
        name: of the parameter, as in the files of the base checkpoint.
        shape: of the whole parameter as stored.
        side: whether the channels are inputs or outputs of the layer.
        dim: dimension of the stored parameter that `indices` counts: 1 for inputs and 0 for outputs of a Linear, the
            other way round for Conv1D.
        indices: `(s,)` int64, ascending, unique.
        values: `weight.index_select(dim, indices)` after the training, in the dtype of the model.
        base: the same before the training; None if the adapter was saved without it.
        base_fingerprint: of `base`, also where `base` was left out; see `fingerprint`.
    """

    name: str
    shape: tuple[int, int]
    side: Side
    dim: int
    indices: Tensor
    values: Tensor
    base: Tensor | None
    base_fingerprint: str


@dataclass(frozen=True, kw_only=True, eq=False)
class S2FTAdapter:
    """Changes of S²FT as a sparse patch of the base model (arXiv 2412.06289, section 5).

    Merging, unmerging and switching copy whole slices and compute nothing, so that they are exact in every dtype, as
    often as they are repeated. The slices of the base that a merge replaces are kept on the model, on its device; an
    adapter never changes, and serves any number of models.

    Example:
        >>> adapter = S2FTAdapter.from_model(trainer.model)
        >>> adapter.save_pretrained("math")
        >>> base = AutoModelForCausalLM.from_pretrained(adapter.base_model, dtype=adapter.dtype)
        >>> S2FTAdapter.from_pretrained("math").merge(base)

    Attributes:
        patches: by name of the weight, in the order of the model; at least one.
        base_model: Hub id of the base model, `demo`, `demo-healthy`, or a path without its private part; None if it
            is not known or contained an earlier training.
        base_revision: its commit, if known.
        selection: options of the selection; None for an adapter made by comparing two models.
        channels: selected channels by layer of the model in memory, as in `Selection`; empty without a selection.
        dtype: of all slices.

    Raises:
        ValueError: no patches.
    """

    patches: Mapping[str, WeightPatch]
    base_model: str | None = None
    base_revision: str | None = None
    selection: S2FTConfig | None = None
    channels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        """Reject an adapter that changes nothing: a merge of it could not be told from none."""
        remedy = "Make it of a trained model: S2FTAdapter.from_model(model)."
        check(len(self.patches) > 0, "patches", "a dict with at least one WeightPatch", self.patches, remedy)

    def __len__(self) -> int:
        """Return the number of patched weights."""
        return len(self.patches)

    @classmethod
    def from_model(cls, model: nn.Module) -> S2FTAdapter:
        """Make an adapter of a model that S2FT trains or has trained.

        Cost: one copy of the trained slices on the CPU.

        Args:
            model: with S2FT on it, or plain after `restore`; not modified. Slices have the dtype of the model.

        Returns:
            The adapter, with the slices at the time of `apply_s2ft` as base. If the model contained an earlier
            training of S2FT at that time (after `restore`), `base_model` is None: the adapter belongs onto that model.
            On the plain base, `merge` then refuses it only where it has channels that the earlier training changed.

        Raises:
            ValueError: a model that S2FT was never applied to.
            ModelError: trained weights that transformers converts when it saves them.
        """
        from hf_farms.s2ft.adapters.making import adapter_of_model

        return adapter_of_model(model)

    @classmethod
    def from_training(cls, model: nn.Module, base: nn.Module) -> S2FTAdapter:
        """Make an adapter of any fine-tuned model whose difference to its base lies in whole channels.

        For each changed weight, the patch has the inputs or the outputs with changes, whichever are less of the weight.
        A channel counts as changed if one of its bits differs. Cost: one comparison of all weights.

        Args:
            model: plain, in memory; not modified.
            base: the model that the training started from, of the same architecture and dtype; not modified.

        Returns:
            The adapter, without a selection.

        Raises:
            ValueError: S2FT is on a model, or it is compiled.
            ModelError: equal models; changes outside of linear layers, or in all inputs and all outputs of a weight,
                with their share; models of other shapes, dtypes or ties; quantized, sharded or offloaded models;
                changes of tied weights.
        """
        from hf_farms.s2ft.adapters.making import adapter_of_difference

        return adapter_of_difference(model, base)

    @classmethod
    def from_pretrained(cls, name: str | Path, *, revision: str | None = None) -> S2FTAdapter:
        """Load an adapter; every name, shape, index and dtype is checked, and every slice against its SHA-256.

        Args:
            name: a folder of `save_pretrained`, a checkpoint of `S2FTCallback`, or an id of the Hub.
            revision: branch, tag or commit on the Hub.

        Raises:
            DataError: missing, truncated or changed files, or a selection without slices, as earlier versions saved.
            HubError: the Hub cannot be reached.
            ModelError: the Hub has no such repository.
        """
        from hf_farms.s2ft.adapters.loading import load_adapter

        return load_adapter(name, revision=revision)

    def save_pretrained(self, folder: str | Path, *, include_base: bool = True) -> None:
        """Write `s2ft_config.json` and `s2ft_adapter.safetensors`. A killed process leaves the old adapter or the new.

        Args:
            folder: created if it does not exist; other files in it stay.
            include_base: also write the slices of the base, which doubles the size. Without them, a model that was
                saved with the adapter merged cannot be unmerged.

        Raises:
            ValueError: a base model or revision whose name `from_pretrained` would refuse.
            OutputError: a path that cannot be written, or a full disk.
        """
        from hf_farms.s2ft.adapters.files import save_adapter

        save_adapter(self, folder, include_base=include_base)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        include_base: bool = True,
        private: bool | None = None,
        create_pr: bool = False,
        revision: str | None = None,
        commit_message: str | None = None,
        overwrite: bool = False,
        token: str | None = None,
    ) -> str:
        """Upload the adapter with a model card and the license files of the base model.

        The token, the name, the content of the repository and write access are checked before anything is created.

        Args:
            repo_id: `namespace/name`, or a name in the user's namespace; created if it does not exist.
            include_base: as for `save_pretrained`.
            private: as for `hf_farms.push`.
            create_pr: as for `hf_farms.push`.
            revision: as for `hf_farms.push`.
            commit_message: as for `hf_farms.push`.
            overwrite: as for `hf_farms.push`.
            token: None: the token of `hf auth login`.

        Returns:
            URL of the repository, the branch or the pull request.

        Raises:
            HubError: the Hub refused the push or cannot be reached.
            ValueError: a name that no repository can have.
        """
        # Workflows stand above this package, so that they are loaded when they are called.
        push = importlib.import_module("hf_farms.workflows.adapter_push").push_adapter
        url: str = push(
            self,
            repo_id,
            include_base=include_base,
            private=private,
            create_pr=create_pr,
            revision=revision,
            commit_message=commit_message,
            overwrite=overwrite,
            token=token,
        )
        return url

    def merge(self, model: nn.Module) -> None:
        """Write the slices into a plain model, in place; the result is the trained model, bit for bit.

        All checks come before the first change. Cost: one gather and one scatter of the slices, without the gather if
        this adapter was merged into this model before; memory for the replaced slices on the device of the model.

        Args:
            model: the base model of the adapter, in the dtype of the adapter.

        Raises:
            ValueError: an adapter is merged already, S2FT or an active router is on the model, or it is compiled.
            ModelError: another base (with the first weight that differs), size or dtype; a model that is quantized,
                sharded, offloaded or has adapters of PEFT; weights that several layers share.
        """
        from hf_farms.s2ft.adapters.applying import merge

        merge(self, model)

    def unmerge(self, model: nn.Module) -> None:
        """Put the slices of the base back, in place, bit for bit.

        They come from the model that `merge` changed; for a model that was saved with the adapter merged, from the
        adapter. Cost: as `merge`.

        Args:
            model: with this adapter merged into it.

        Raises:
            ValueError: another adapter or none is merged, or as `merge`.
            ModelError: the slices have changed since the merge, or their base is not known; or as `merge`.
        """
        from hf_farms.s2ft.adapters.applying import unmerge

        unmerge(self, model)

    def switch(self, model: nn.Module, to: S2FTAdapter) -> None:
        """Replace this merged adapter by another one of the same base, touching only the channels of both.

        Cost: one scatter of both. The first time that `to` is used with this model, its base is also read and compared;
        afterwards the version counter of torch and a few entries of each channel show that nothing else has written to
        these weights. Fused optimizers and writes through `.data` are not counted: of those, a change of few entries
        may be missed.

        Args:
            model: with this adapter merged into it; changed in place.
            to: the new adapter.

        Raises:
            ValueError: `to` is no adapter, or as `unmerge`.
            ModelError: as `unmerge` and `merge`; the model then keeps this adapter.
        """
        from hf_farms.s2ft.adapters.applying import switch

        switch(self, model, to)

    def on(self, model: nn.Module) -> AbstractContextManager[nn.Module]:
        """Merge within a context, and unmerge at its end, also after an exception.

        Example:
            >>> with adapter.on(model):
            ...     model.generate(**inputs)

        Raises:
            ValueError: as `merge` and `unmerge`.
            ModelError: as `merge` and `unmerge`.
        """
        from hf_farms.s2ft.adapters.applying import merged

        return merged(self, model)

    def export_lora(
        self, folder: str | Path, *, base: nn.Module | str | Path | None = None, dtype: torch.dtype | None = None
    ) -> LoRAExport:
        """Write a LoRA for PEFT, vLLM and SGLang; see `hf_farms.s2ft.adapters.lora_export.export_lora`.

        Args:
            folder: created if it does not exist; an earlier export in it is replaced.
            base: the base model or its checkpoint; needed if the adapter has no slices of its base.
            dtype: of the tensors; None is float32.

        Returns:
            Sizes, and the options to start a server with: `print` it.
        """
        from hf_farms.s2ft.adapters.lora_export import export_lora

        return export_lora(self, folder, base=base, dtype=dtype)


def fingerprint(slices: Tensor) -> str:
    """Return the SHA-256 of dtype, shape and bytes of a slice, as 64 hexadecimal digits."""
    header = f"{slices.dtype} {tuple(slices.shape)} ".encode()
    return hashlib.sha256(header + slices.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()

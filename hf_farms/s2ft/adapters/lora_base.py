"""The base model of a LoRA export: names in memory, linear layers, and slices that an adapter was saved without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_farms.blocks import StoredTensors, TensorFiles
from hf_farms.blocks.wrappers import unwrapped
from hf_farms.config.checks import check
from hf_farms.errors import ModelError
from hf_farms.s2ft.adapters.patches import WeightPatch, fingerprint
from hf_farms.s2ft.adapters.targets import check_patchable, check_side, parameter_names

__all__ = ["BaseModel", "open_base"]

# PEFT looks for a trained head where the task is another one (classification).
CAUSAL, SEQUENCE_TO_SEQUENCE = "CAUSAL_LM", "SEQ_2_SEQ_LM"


@dataclass(frozen=True)
class BaseModel:
    """A base model in memory, or its files with a model that has no weights.

    Attributes:
        model: without wrappers; on the meta device where the weights are on disk.
        read: returns a parameter, given its name in memory.
    """

    model: nn.Module
    read: Callable[[str], Tensor]

    def names_in_memory(self, patches: Sequence[WeightPatch]) -> dict[str, str]:
        """Return the name in memory for the name of every patch.

        Raises:
            ModelError: the model has no such weight, or one of another shape, or a layer with other sides.
        """
        names = parameter_names(self.model, [patch.name for patch in patches])
        for patch in patches:
            shape = tuple(self.model.get_parameter(names[patch.name]).shape)
            if shape != tuple(patch.shape):
                raise ModelError(
                    f"base must have weights of the adapter's shapes, got {shape} instead of {tuple(patch.shape)} in "
                    f"{patch.name}.",
                    hint="Pass the base model of the adapter.",
                )
            check_side(self.model.get_submodule(names[patch.name].rpartition(".")[0]), patch)
        return names

    def slices(self, patch: WeightPatch, parameter: str) -> Tensor:
        """Return the slices of the base for a patch, in the dtype of the adapter, which the training has cast it to.

        Raises:
            ModelError: the model is not the base of the adapter.
        """
        weight = self.read(parameter).detach()
        base = weight.index_select(patch.dim, patch.indices.to(weight.device)).cpu()
        base = base.to(patch.values.dtype).contiguous()
        if fingerprint(base) != patch.base_fingerprint:
            raise ModelError(
                f"base must be the model that the adapter was made of, got other values in {patch.name}.",
                hint="Pass that model, without an adapter merged into it.",
            )
        return base

    def features(self) -> dict[str, tuple[int, int]]:
        """Return outputs and inputs of every linear layer, by name in memory."""
        features = {}
        for name, module in self.model.named_modules():
            if isinstance(module, nn.Linear | Conv1D):
                m, n = module.weight.mT.shape if isinstance(module, Conv1D) else module.weight.shape
                features[name] = m, n
        return features

    @property
    def model_type(self) -> str:
        """The architecture, as in `config.json`; empty for a model without a config."""
        return str(getattr(getattr(self.model, "config", None), "model_type", ""))

    @property
    def task_type(self) -> str | None:
        """The task as PEFT names it; None for those without a class of their own there, and for classification."""
        name = type(self.model).__name__
        config: Any = getattr(self.model, "config", None)
        if name.endswith("ForConditionalGeneration"):
            return SEQUENCE_TO_SEQUENCE if getattr(config, "is_encoder_decoder", False) else CAUSAL
        return CAUSAL if name.endswith(("ForCausalLM", "LMHeadModel")) else None


def open_base(base: nn.Module | str | Path) -> BaseModel:
    """Open a model in memory, or a checkpoint, of which single weights are read when they are needed.

    Raises:
        ValueError: neither of them; a model that is compiled or has S2FT on it.
        ModelError: not found or incomplete; quantized, sharded or with adapters of PEFT.
    """
    check(isinstance(base, nn.Module | str | Path), "base", "a model, or the folder or Hub id of one", base)
    if isinstance(base, nn.Module):
        check_patchable(base)
        model = unwrapped(base)
        return BaseModel(model, model.get_parameter)
    from hf_farms.loading import load_model

    loaded = load_model(base, tokenizer=False, stream=True, head=False)
    return BaseModel(loaded.model, StoredTensors(TensorFiles(loaded.weights), loaded.model).read)

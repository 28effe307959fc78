"""Adapters in vLLM without LoRA: exact slices, written into the weights of a running engine, and taken out again.

One adapter at a time, for all requests, and without a cost per token. To serve several at once, export them as LoRA
(`S2FTAdapter.export_lora`). Needs the checkpoint weight patches of vLLM 0.33 and a GPU: on a CPU, vLLM packs the
weights, and this refuses. Untried on a GPU. Tried in vLLM for the CPU, made to keep the weights
(`make test-serving`); `python tests/benchmarks/gpu.py --output gpu.json --sections serving` tries it on a GPU.

With `vllm serve`, methods are reached over HTTP in development mode only, which is for networks that you trust:

    VLLM_SERVER_DEV_MODE=1 vllm serve BASE --worker-extension-cls hf_farms.serving.vllm.S2FTWorkerExtension
    curl localhost:8000/collective_rpc -d '{"method": "apply_s2ft_adapter", "args": ["/path/of/adapter"]}'
    curl -X POST localhost:8000/reset_prefix_cache

vLLM imports this module by its name; it imports vLLM when a method is called.
"""

from __future__ import annotations

import importlib
from typing import Any, cast

from hf_farms.errors import HfFarmsError, ModelError
from hf_farms.s2ft.adapters.patches import S2FTAdapter
from hf_farms.serving.flat_patches import flat_patches
from hf_farms.serving.served_base import with_served_base

__all__ = ["S2FTWorkerExtension"]

PATCHES = "vllm.model_executor.model_loader.checkpoint_weight_patch"
# Attribute of a worker: the adapter that its weights hold, BROKEN after a patch that failed.
STATE = "_s2ft_adapter"
BROKEN = "broken"
EXPORT = "Export the adapter as a LoRA (hf-farms adapter export) and start the engine with --enable-lora."


class S2FTWorkerExtension:
    """Methods that vLLM adds to its workers.

    Pause or finish the requests before a switch, and reset the prefix cache after it, whose keys and values belong to
    the previous weights.

    Example:
        >>> llm = LLM(base, worker_extension_cls="hf_farms.serving.vllm.S2FTWorkerExtension")
        >>> llm.collective_rpc("apply_s2ft_adapter", args=("math",))
        >>> llm.reset_prefix_cache()
        >>> llm.collective_rpc("apply_s2ft_adapter", args=(None,))  # the base again, bit for bit
    """

    def apply_s2ft_adapter(self, name: str | None, revision: str | None = None) -> int:
        """Write an adapter into the weights, in place of the one that they hold.

        Afterwards, the weights are those of the merged model, bit for bit. Every check that needs no vLLM comes before
        the first change. The adapter in use stays in the memory of the worker, with the slices of its base, which are
        read from the served checkpoint.

        Cost: memory of the GPU beside what vLLM reserves, for as long as the call takes: an index and a value for every
        element of the channels of both adapters, and whole weights, about 0.5 GB of them.

        Args:
            name: folder or Hub id of an adapter of the served model; None for the base model.
            revision: branch, tag or commit on the Hub.

        Returns:
            The number of values in the whole checkpoint that were written.

        Raises:
            ModelError: vLLM without checkpoint weight patches; an engine with LoRA, packed or quantized weights, or
                another dtype; an adapter of another base than the served checkpoint; an earlier patch has failed.
            DataError: as `S2FTAdapter.from_pretrained`.
            HubError: the Hub cannot be reached.
        """
        try:
            return _apply(cast(Any, self), name, revision)
        except HfFarmsError as error:
            if error.hint is None:
                raise
            # Of an error in another process, vLLM passes on the message alone.
            raise type(error)(f"{error} {error.hint}") from error


def _apply(worker: Any, name: str | None, revision: str | None) -> int:
    vllm_patches = _vllm_patches()
    _check_engine(worker)
    old: Any = getattr(worker, STATE, None)
    if old is BROKEN:
        raise ModelError(
            "weights must be patched completely, got an engine in which a patch has failed, so that some may have "
            "changed.",
            hint="Restart the engine.",
        )
    new = None
    if name is not None:
        new = S2FTAdapter.from_pretrained(name, revision=revision)
        _check_dtype(worker, new)
        model = worker.vllm_config.model_config
        new = with_served_base(new, model.model, revision=model.revision)
    flat = flat_patches(old, new)
    device = worker.device
    patches = [
        vllm_patches.CheckpointWeightPatch(
            name=patch.name,
            shape=patch.shape,
            dtype=patch.values.dtype,
            values=patch.values.to(device),
            indices=patch.indices.to(device),
        )
        for patch in flat
    ]
    setattr(worker, STATE, BROKEN)
    if patches:
        vllm_patches.load_checkpoint_weight_patches(worker.get_model(), patches)
    setattr(worker, STATE, new)
    return sum(len(patch.indices) for patch in flat)


def _vllm_patches() -> Any:
    """Import the module of vLLM that patches weights.

    Raises:
        ModelError: it is not in this version.
    """
    try:
        return importlib.import_module(PATCHES)
    except ModuleNotFoundError as error:
        # Not something else that is missing, which vLLM explains better.
        if error.name is None or not f"{PATCHES}.".startswith(f"{error.name}."):
            raise
    vllm = importlib.import_module("vllm")
    raise ModelError(
        f"vLLM must have checkpoint weight patches, as 0.33 has, got {vllm.__version__}.",
        hint=f"Update vLLM. Or: {EXPORT}",
    )


def _check_engine(worker: Any) -> None:
    """Refuse engines whose weights are not those of a checkpoint."""
    config = worker.vllm_config
    # On a CPU, vLLM packs the weights of linear layers when it has loaded them, and leaves empty parameters.
    if any(weight.numel() == 0 for weight in worker.get_model().parameters()):
        raise ModelError(
            f"the engine must keep the weights of the checkpoint to patch them, got packed ones on {worker.device}.",
            hint=EXPORT,
        )
    if config.lora_config is not None:
        raise ModelError(
            "the engine must be started without LoRA to patch its weights, got --enable-lora.",
            hint="Start it without, or request the adapter as a LoRA (hf-farms adapter export).",
        )
    if config.model_config.quantization is not None:
        raise ModelError(
            f"weights must not be quantized to be patched, got {config.model_config.quantization}.", hint=EXPORT
        )


def _check_dtype(worker: Any, adapter: S2FTAdapter) -> None:
    dtype = worker.vllm_config.model_config.dtype
    if adapter.dtype != dtype:
        own = str(adapter.dtype).removeprefix("torch.")
        raise ModelError(
            f"the engine must have the dtype of the adapter, {own}, got {str(dtype).removeprefix('torch.')}.",
            hint=f"Start it with --dtype {own}.",
        )

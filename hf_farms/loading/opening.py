"""Load a model into memory, or open its checkpoint for reading."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hf_farms.blocks import (
    BlockReader,
    ModelBlockSource,
    StoredBlockReader,
    StoredTensors,
    StreamedBlockSource,
    TensorFiles,
    align_weights,
)
from hf_farms.errors import ModelError
from hf_farms.hub.client import hub_errors
from hf_farms.loading.dequantizing import dequantizing_options
from hf_farms.loading.devices import find_device, free_memory, parse_dtype, require_computing
from hf_farms.loading.files import architecture_of, quantization_of, weight_files
from hf_farms.loading.missing_weights import check_complete, list_names
from hf_farms.loading.model_config import read_config
from hf_farms.loading.names import ModelRef
from hf_farms.loading.resolution import find_model
from hf_farms.loading.tokenizer import load_tokenizer
from hf_farms.processes import local_process_count

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    # Called with a model without weights, and the tokenizer.
    BeforeWeights = Callable[[PreTrainedModel, PreTrainedTokenizerBase | None], object]

__all__ = ["LoadedModel", "load_model", "open_model"]

# A model that takes more than this share of the free memory is read from disk block by block: calibration data, scores
# and everything else need some too.
MEMORY_SHARE = 0.5
# Loads names and shapes, and no weights.
META = {"device_map": {"": "meta"}}


@dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer, if it has one.

    Attributes:
        model: without the blocks if streamed; `source.whole()` loads them temporarily.
        tokenizer: of the model.
        source: its blocks.
        weights: the files that hold its weights.
        absent: weights of the head or a pooler that the files do not hold and that nothing here uses; random.
        notes: on the origin of the weights, for reports and cards.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    source: ModelBlockSource
    weights: tuple[Path, ...]
    absent: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def load_model(
    model: str | Path | ModelRef,
    *,
    dtype: str = "auto",
    device: str | None = None,
    revision: str | None = None,
    tokenizer: bool | None = True,
    stream: bool | None = False,
    allow_pickle: bool = False,
    head: bool = True,
    before_weights: BeforeWeights | None = None,
) -> LoadedModel:
    """Load a model and its tokenizer.

    `dtype`, `device`, `revision`, `stream` and `allow_pickle` are those of `LoadOptions`.

    Args:
        model: `demo`, a folder, or a hub id, in this order; or a `ModelRef`.
        dtype: "auto" is the dtype of the checkpoint.
        device: None is a GPU if available, else the CPU.
        revision: of a hub id.
        tokenizer: whether to load a tokenizer; a missing one is an error. None loads one if it exists.
        stream: keep the blocks on disk and read each when it is needed; None: if the model needs more than half of
            the free memory. What a block computes is the same to the bit.
        allow_pickle: read pickled weights (`pytorch_model.bin`) where there are no safetensors, and convert those in
            Meta's own layout (`consolidated.NN.pth`); no code in them is run.
        head: whether the head of a language model is used. A missing head is then an error, otherwise a warning.
        before_weights: called with the model on the meta device and the tokenizer, before any weights are fetched.

    Raises:
        ModelError: not found, weights missing or of other shapes, pickled, no architecture that transformers knows, no
            tokenizer, or quantized and to be streamed.
    """
    weights_dtype, where = parse_dtype(dtype), find_device(device)
    ref = ModelRef.parse(model, revision)
    name = ref.name
    with hub_errors(name, action="load"):
        place = find_model(ref, allow_pickle=allow_pickle, tokenizer=bool(tokenizer))
        path, revision = place.path, place.revision
        config = read_config(name, path, revision)
        method = quantization_of(config)
        if stream and method is not None:
            raise ModelError(f"weights must be plain to be read block by block, got {method} in {name!r}.")
        if before_weights is not None:
            before_weights(_without_weights(config), _tokenizer(name, path, revision, tokenizer))
        checkpoint = _Checkpoint(name, path, revision, config, allow_pickle)
        streamed = stream if stream is not None else _is_large(checkpoint.weights, dtype, where)
        files = TensorFiles(checkpoint.weights, mapped=not streamed)
        if weights_dtype == "auto" and method is None:
            require_computing(config.dtype or files.dtype, name)
        options = META if streamed else {}
        loaded, info = checkpoint.load(files, dtype=weights_dtype, **options)
        absent = check_complete(loaded, info, name=name, head=head and loaded.can_generate())
        if streamed:
            source: ModelBlockSource = StreamedBlockSource(loaded, files, device=where, absent=absent)
        else:
            if method is None:
                _restore_padding(loaded, files)
            loaded.to(where)  # type: ignore[arg-type]
            align_weights(loaded)
            source = ModelBlockSource(loaded)
    words = _tokenizer(name, path, revision, tokenizer)
    notes = place.notes
    if absent:
        notes = (*notes, f"The checkpoint has no weights for the head or pooler ({list_names(absent)}).")
    return LoadedModel(loaded, words, source, tuple(checkpoint.weights), absent, notes)


class _Checkpoint:
    """A model's files, as transformers loads them.

    Args:
        name: as the user gave it.
        path: a folder or a hub id.
        revision: of the hub id.
        config: the model's.
        allow_pickle: whether pickled weights may be read.
    """

    def __init__(self, name: str, path: str, revision: str | None, config: Any, allow_pickle: bool) -> None:
        self.weights = weight_files(name, path, revision, allow_pickle=allow_pickle)
        self._name, self._path, self._revision, self._config = name, path, revision, config
        # Never None where pickles are not allowed: transformers falls back to them.
        self._safe = None if allow_pickle else True

    def load(self, files: TensorFiles, **options: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
        """Load the model; return it with the loading info of transformers, which also lists mismatched shapes.

        Args:
            files: the same weights, to tell what failed.
            options: of `from_pretrained`.
        """
        architecture = architecture_of(self._config)
        try:
            with _without_report(progress="device_map" not in options):
                model, info = architecture.from_pretrained(
                    self._path,
                    revision=self._revision,
                    trust_remote_code=False,
                    use_safetensors=self._safe,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,
                    **options,
                )
        except RuntimeError as error:
            if "conversion" in str(error):
                # transformers refers to a report in its log. Convert again to find the failing weight.
                StoredTensors(files, _without_weights(self._config)).check_conversions()
            raise
        model.config._name_or_path = self._name
        return model, info


def _tokenizer(name: str, path: str, revision: str | None, needed: bool | None) -> PreTrainedTokenizerBase | None:
    return load_tokenizer(name, path, revision, needed=needed) if needed is not False else None


def _without_weights(config: Any) -> PreTrainedModel:
    architecture = architecture_of(config)
    with torch.device("meta"):
        model: PreTrainedModel = getattr(architecture, "from_config", architecture)(config)
    return model


def _restore_padding(model: PreTrainedModel, files: TensorFiles) -> None:
    """Restore the stored embeddings of padding tokens, which some models zero after loading (Chinese-CLIP)."""
    zeros = {
        f"{name}.weight": (module.weight.data, module.padding_idx)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Embedding)
        and module.padding_idx is not None
        and not bool(module.weight[module.padding_idx].any())
    }
    stored = StoredTensors(files, model) if zeros else None
    for name, (weight, row) in zeros.items():
        if stored is not None and stored.has(name):
            weight[row] = stored.read(name)[row].to(weight)


def _is_large(weights: list[Path], dtype: str, device: str) -> bool:
    size = sum(path.stat().st_size for path in weights if path.exists())
    # The checkpoint may be in half precision.
    # Launched processes share the memory of the machine; each has a GPU of its own.
    sharing = local_process_count() if torch.device(device).type == "cpu" else 1
    return size * (2 if dtype == "float32" else 1) > MEMORY_SHARE * free_memory(device) / sharing


@contextmanager
def _without_report(*, progress: bool) -> Iterator[None]:
    """Suppress the loading report of transformers, as `check_complete` reports the same."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if bars and not progress:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def open_model(
    name: str | Path,
    *,
    device: str | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
    head: bool | None = None,
) -> BlockReader:
    """Open a model's checkpoint for reading, without building the model.

    A quantized checkpoint is loaded instead, dequantized by its library: that takes the memory of the whole model.

    Args:
        name: `demo`, a folder, or a hub id, looked for in this order; of a hub id only configs and weights are fetched.
        device: where a quantized checkpoint is loaded; None is a GPU if available, else the CPU.
        revision: of a hub id.
        allow_pickle: read pickled weights (`pytorch_model.bin`) where there are no safetensors, and convert those in
            Meta's own layout (`consolidated.NN.pth`); no code in them is run.
        head: whether the head is read too. A missing head is then an error, otherwise a warning. None: True for
            language models, as for `load_model`.

    Raises:
        ModelError: not found, incomplete, pickled, no architecture that transformers knows, or quantized by a method
            that cannot be undone here.
    """
    name = str(name)
    with hub_errors(name, action="load"):
        place = find_model(ModelRef.parse(name, revision), allow_pickle=allow_pickle, tokenizer=False)
        path, revision = place.path, place.revision
        config = read_config(name, path, revision)
        method = quantization_of(config)
        dequantizing = dequantizing_options(name, method) if method is not None else {}
        checkpoint = _Checkpoint(name, path, revision, config, allow_pickle)
        files = TensorFiles(checkpoint.weights)
        # The dtype of a model without weights does not matter, and its own may be for storage alone.
        options = {"dtype": "auto", **dequantizing} if method is not None else {"dtype": torch.float32, **META}
        model, info = checkpoint.load(files, **options)
        absent = check_complete(model, info, name=name, head=model.can_generate() if head is None else head)
        if method is None:
            return StoredBlockReader(name, model, files, absent=absent)
        # bitsandbytes and torchao weights stay on the device that they were made on.
        if dequantizing:
            model.to(find_device(device))  # type: ignore[arg-type]
        return ModelBlockSource(model)

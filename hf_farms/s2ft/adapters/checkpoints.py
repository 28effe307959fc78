"""Checkpoints on disk whose weights an adapter changes: their files, and their tensors by the names of the adapter.

Shards are copied byte by byte, but for the patched channels: layout, order, metadata and every other tensor stay as
they are, also those of a dtype that torch cannot compute with. Memory: one weight.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_farms.blocks import TensorFiles
from hf_farms.blocks.origins import find_origins
from hf_farms.errors import ModelError
from hf_farms.files.names import HISTORY, MODEL_CONFIG, RECIPE, REPORT, SELECTION, WEIGHTS, WEIGHTS_INDEX
from hf_farms.files.own_files import foreign_texts
from hf_farms.hub.base_model import LICENSE_FILE
from hf_farms.hub.client import hub_errors, with_retries
from hf_farms.hub.contents import MODEL_FILE, read_contents
from hf_farms.loading.files import architecture_of, weight_files
from hf_farms.loading.model_config import read_config
from hf_farms.loading.names import ModelRef
from hf_farms.output.allowed_paths import Reads
from hf_farms.output.code_references import drop_code_references
from hf_farms.output.new_folder import new_folder
from hf_farms.s2ft.adapters.patched_files import Change, write_patched
from hf_farms.s2ft.adapters.patches import WeightPatch
from hf_farms.s2ft.adapters.targets import parameter_names

__all__ = ["StoredCheckpoint", "open_checkpoint"]

# Of a repository: configs, tokenizers and licenses.
TEXTS = [
    "*.json",
    "*.jinja",
    "*.txt",
    "*.model",
    "*.tiktoken",
    "*.bpe",
    "*.codes",
    "*.spm",
    "LICEN*",
    "NOTICE*",
    "USE_*",
]
# Files of hf-farms and of a training, which describe the other model.
DESCRIPTIONS = {
    *("README.md", RECIPE, REPORT, HISTORY, "CITATION.cff", ".gitattributes"),
    *("trainer_state.json", "modelcard.json", SELECTION, "adapter_config.json"),
}


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint of safetensors.

    Attributes:
        model: its name.
        folder: with all its files.
        tensors: of its weight files, by name on disk.
    """

    model: ModelRef
    folder: Path
    tensors: TensorFiles

    @property
    def num_bytes(self) -> int:
        """Bytes of the weight files."""
        return sum(path.stat().st_size for path in self.tensors.paths)

    def read(self, patches: Iterable[WeightPatch]) -> Iterator[tuple[WeightPatch, str, Tensor]]:
        """Yield each patch with the name of its tensor on disk and the tensor.

        Raises:
            ModelError: the checkpoint has no such weight, or one of another shape or dtype.
        """
        patches = tuple(patches)
        names = self._names_on_disk([patch.name for patch in patches])
        for patch in patches:  # of all first, as another size explains other values
            _check_shape(self.model.name, self.tensors.blank(names[patch.name]), patch)
        for patch in patches:
            tensor = self.tensors.read(names[patch.name])
            _check_dtype(self.model.name, tensor, patch)
            yield patch, names[patch.name], tensor

    def write(
        self, output: str | Path, changes: Mapping[str, Change], *, reads: Reads, progress: Callable[[int, int], None]
    ) -> None:
        """Write a copy with changed weights, in the same shards, with config, tokenizer and license files.

        Args:
            output: a new folder, which appears when it is complete.
            changes: by name on disk.
            reads: inputs of the command, which must not be written to.
            progress: called with the shards that are done, and their number.

        Raises:
            OutputError: as `new_folder`.
            ModelError: a file changed meanwhile.
        """
        paths = self.tensors.paths
        with new_folder(output, reads=reads, size=self.num_bytes) as folder:
            for done, path in enumerate(paths):
                progress(done, len(paths))
                target = folder / path.relative_to(self.folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                write_patched(path, target, changes)
            for name, path in self._texts().items():
                (folder / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(path, folder / name)
            drop_code_references(folder)
            progress(len(paths), len(paths))

    def _texts(self) -> dict[str, Path]:
        """Return the files to copy by name, also those of the same name that are links into another model's folder."""
        foreign = set(foreign_texts(self.folder))
        contents = read_contents(self.folder)
        names = {MODEL_CONFIG, *(name for name in (*contents.files, *contents.others) if _is_text(name))}
        if [path.name for path in self.tensors.paths] != [WEIGHTS]:
            names.add(WEIGHTS_INDEX)
        return {name: self.folder / name for name in sorted(names - foreign) if (self.folder / name).is_file()}

    def _names_on_disk(self, names: list[str]) -> dict[str, str]:
        """Return the names on disk for names that `save_pretrained` writes; older checkpoints have other ones."""
        stored = set(self.tensors.names)
        if stored.issuperset(names):
            return {name: name for name in names}
        model = self._empty_model()
        in_memory = parameter_names(model, names)
        meta = dict(model.named_parameters(remove_duplicate=False))
        origins = {origin.target: origin for origin in find_origins(self.tensors.names, model, meta)}
        found = {}
        for name in names:
            origin = origins.get(in_memory[name])
            if origin is None or origin.converter is not None:
                raise ModelError(
                    f"model must have every weight of the adapter, got {self.model.name!r} without {name}.",
                    hint="Take the base model of the adapter.",
                )
            found[name] = origin.only
        return found

    def _empty_model(self) -> Any:
        config = read_config(self.model.name, str(self.folder), None)
        architecture = architecture_of(config)
        with torch.device("meta"):
            return getattr(architecture, "from_config", architecture)(config)


def open_checkpoint(model: str | Path, *, revision: str | None = None) -> StoredCheckpoint:
    """Find the files of a checkpoint, and download them if needed.

    Args:
        model: `demo`, a folder or a Hub id.
        revision: of a Hub id.

    Raises:
        ModelError: not found, incomplete, or without safetensors.
        HubError: the Hub cannot be reached.
    """
    ref = ModelRef.parse(model, revision)
    ref.check()
    with hub_errors(ref.name, action="load"):
        folder = Path(ref.path) if ref.kind != "hub" else _downloaded(ref)
        commit = None if ref.kind != "hub" else folder.name
        paths = weight_files(
            ref.name,
            ref.path,
            commit,
            allow_pickle=False,
            remedy="Convert them with transformers: load the model, and save it with save_pretrained.",
        )
    return StoredCheckpoint(ref, folder, TensorFiles(paths))


def _downloaded(ref: ModelRef) -> Path:
    """Download the files beside the weights; the name of their folder is the commit."""
    from huggingface_hub import snapshot_download

    return Path(
        with_retries(
            lambda: snapshot_download(
                ref.name, revision=ref.revision, allow_patterns=TEXTS, ignore_patterns=["*/*", "*.index.json"]
            ),
            what=f"Downloading {ref.name}",
            reads=True,
        )
    )


def _is_text(name: str) -> bool:
    """Whether a file is copied: config, tokenizer or license of a model."""
    if name in DESCRIPTIONS or name.endswith((".safetensors", ".index.json", ".py", "_results.json")):
        return False
    if "/" in name and not name.startswith("additional_chat_templates/"):
        return False
    return MODEL_FILE.fullmatch(name) is not None or LICENSE_FILE.fullmatch(name) is not None


def _check_shape(model: str, tensor: Tensor, patch: WeightPatch) -> None:
    if tuple(tensor.shape) != tuple(patch.shape):
        raise ModelError(
            f"weights must have the shape that the adapter was made for, got {tuple(tensor.shape)} instead of "
            f"{tuple(patch.shape)} in {patch.name} of {model!r}.",
            hint="Take the base model of the adapter.",
        )


def _check_dtype(model: str, tensor: Tensor, patch: WeightPatch) -> None:
    if tensor.dtype != patch.values.dtype:
        stored, expected = (str(dtype).removeprefix("torch.") for dtype in (tensor.dtype, patch.values.dtype))
        raise ModelError(
            f"weights must have the dtype of the adapter ({expected}), got {stored} in {patch.name} of {model!r}.",
            hint="Save the model in that dtype first, or make the adapter of models in the dtype of the files.",
        )

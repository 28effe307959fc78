"""A model's name -> its files, its architecture and the device to use."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_farms.demo import demo_model
from hf_farms.errors import HfFarmsError, HfFarmsWarning, ModelError
from hf_farms.original import find_original
from hf_farms.patience import nothing_swallowed, watched
from hf_farms.refusals import ADAPTER, adapter_error, custom_code_error, refuse_pointers, refuse_special_files
from hf_farms.requests import retried
from hf_farms.shards import ENDINGS, shard_names

__all__ = [
    "Place",
    "architecture_of",
    "explained",
    "find_device",
    "find_model",
    "free_memory",
    "quantisation_of",
    "require_model",
    "resolve",
    "weight_files",
]

DEMO = "demo"
SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where transformers can load a model.

    Attributes:
        path: a folder or a hub id.
        revision: of the hub id.
        notes: what a reader of a result must know: another repository, or a conversion.
    """

    path: str
    revision: str | None = None
    notes: tuple[str, ...] = ()


def find_model(name: str, *, revision: str | None = None, allow_pickle: bool = False, tokenizer: bool = True) -> Place:
    """Find what transformers can load for a name.

    For a model in Meta's own layout that is another repository or a converted copy, which is said by a warning.

    Args:
        name: `demo`, a folder, or a hub id.
        revision: of a hub id.
        allow_pickle: convert pickled weights in Meta's layout.
        tokenizer: whether a tokenizer is converted too.

    Raises:
        ModelError: a folder without a model, a file, no name that a hub id could have, or as `find_original`.
        HubError: the Hub cannot be reached.
    """
    path = resolve(name)
    original = find_original(path, revision=revision, allow_pickle=allow_pickle)
    if original is None:
        return Place(path=path, revision=revision)
    warnings.warn(original.note, HfFarmsWarning, stacklevel=2)
    return Place(path=original.ready(tokenizer=tokenizer), notes=(original.note,))


def resolve(name: str) -> str:
    """The folder of `demo`, a folder, or a hub id.

    Raises:
        ModelError: a folder without a model, a file, or no name that a hub id could have.
    """
    if name == DEMO:
        return str(demo_model())
    if not name.strip():
        raise ModelError(f"model must be a hub id, a folder or `demo`, got {name!r}.")
    folder = Path(name)
    if folder.is_dir():
        refuse_special_files(folder)
        if not (folder / "config.json").is_file():
            if (folder / "params.json").is_file() and any(folder.glob("consolidated.*")):
                return name
            if (folder / ADAPTER).is_file():
                raise adapter_error(name, folder / ADAPTER)
            raise ModelError(
                f"model folder must have a config.json, got {name!r} without.",
                hint="Name a folder that save_pretrained wrote.",
            )
        refuse_pointers(folder)
        if (folder / ADAPTER).is_file():
            raise adapter_error(name, folder / ADAPTER)
        if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
            raise ModelError(f"model folder must have weights (*.safetensors), got {name!r} without.")
        return name
    if folder.is_file():
        raise ModelError(f"model must be a folder or a hub id, got the file {name!r}.")
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise ModelError(f"model must be a hub id or an existing folder, got {name!r}. Check the path.")
    return name


def require_model(name: str) -> None:
    """Refuse a name under which there is no model, by asking for its config alone.

    Raises:
        ModelError: as `resolve`, or no such repository.
        HubError: the Hub cannot be reached.
    """
    from transformers.utils.hub import cached_file

    with explained(name):
        cached_file(resolve(name), "config.json", _raise_exceptions_for_missing_entries=False)


def weight_files(name: str, path: str, revision: str | None, *, allow_pickle: bool) -> list[Path]:
    """The files that hold the weights, on this machine."""
    from transformers.utils.hub import cached_file

    def found(file: str) -> Path | None:
        def fetch() -> Any:
            return cached_file(path, file, revision=revision, _raise_exceptions_for_missing_entries=False)

        where = fetch() if Path(path).is_dir() else retried(fetch, what=f"Downloading {file}", reads=True)
        return Path(where) if where else None

    _check_indices(Path(path))
    for single in (SAFE, PICKLED):
        # In the order of transformers: a whole file comes before shards.
        whole = found(single)
        index = None if whole else found(f"{single}.index.json")
        if not index and not whole:
            continue
        if single == PICKLED and not allow_pickle:
            raise ModelError(
                f"weights must be safetensors, got pickled ones in {name!r}.",
                hint="Convert them with transformers (save_pretrained), or allow them: --allow-pickle.",
            )
        if whole:
            return [whole]
        assert index is not None
        return [_shard(found(shard), shard, index) for shard in shard_names(index)]
    _require_absent(path, revision)
    raise ModelError(f"model must have weights ({SAFE}, or shards with an index), got {name!r} without.")


def _require_absent(path: str, revision: str | None) -> None:
    """Raise what kept the Hub from saying whether there are weights: transformers takes it for a no."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    if Path(path).is_dir() or constants.HF_HUB_OFFLINE:
        return
    for file in (SAFE, f"{SAFE}.index.json"):
        with contextlib.suppress(RemoteEntryNotFoundError):
            hf_hub_download(path, file, revision=revision)


def _check_indices(folder: Path) -> None:
    """Refuse an index that leads out of the folder, though it is not the one that is read: others may read it."""
    for index in sorted(folder.glob("*.index.json")) if folder.is_dir() else ():
        if index.is_file() and index.name.endswith(tuple(ENDINGS)):
            try:
                shard_names(index)
            except ModelError as error:
                if error.__cause__ is None:  # else it is damaged, which is said where it is needed
                    raise


def _shard(found: Path | None, name: str, index: Path) -> Path:
    if found is None:
        raise ModelError(
            f"checkpoint must be complete, got {index.parent} without {name}.", hint="Download the model again."
        )
    return found


def quantisation_of(config: Any) -> str | None:
    """The method that the weights are quantised by; None: they are plain."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    method = found.get("quant_method") if isinstance(found, dict) else found.quant_method
    return str(getattr(method, "value", method))


def find_device(wanted: str | None) -> str:
    """The device asked for; without a wish a GPU if there is one, else the CPU.

    Raises:
        ValueError: there is no such device here.
    """
    if wanted is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=wanted).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device must be one that is there, such as cpu or cuda:0, got {wanted!r}. Leave --device out."
        ) from error
    return wanted


def architecture_of(config: Any) -> Any:
    """The causal language model of this config; where the checkpoint names another head, that."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    named = (getattr(config, "architectures", None) or [None])[0]
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    if causal is not None and named in (None, causal):
        return transformers.AutoModelForCausalLM
    found = getattr(transformers, named or "", None)
    if found is None and getattr(config, "auto_map", None):
        raise custom_code_error(config.name_or_path, f"architecture ({named})")
    if found is None:
        raise ModelError(
            f"model must have an architecture that transformers knows, got {named!r} ({config.model_type})."
        )
    return found


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn what transformers and the Hub client raise while loading into one sentence."""
    try:
        with watched(), nothing_swallowed():
            yield
    except HfFarmsError:
        raise
    except Exception as error:  # transformers, safetensors, tokenizers and the Hub client each have their own
        from hf_farms.explain import explain

        raise explain(error, what=name) from error


def free_memory(device: str) -> int:
    """Bytes that this process may still take on a device; a limit of its control group counts."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    from accelerate.utils import get_max_memory

    return min([int(get_max_memory()["cpu"]), *_rooms(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))])


def _rooms(mount: Path, membership: Path) -> Iterator[int]:
    """Bytes that are left in the control group of this process and in those around it, of version 1 and 2.

    Only memory that cannot be given back counts as taken: the page cache does not.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, own = line.split(":", 2)
        if not controllers:
            root, limit, taken = mount, "memory.max", "anon"
        elif "memory" in controllers.split(","):
            root, limit, taken = mount / "memory", "memory.limit_in_bytes", "total_rss"
        else:
            continue
        # In a container the name may be that on the host, and only the root is there.
        inner = [Path(*own.split("/")[1:end]) for end in range(1, len(own.split("/")) + 1)]
        for group in (root / name for name in inner if ".." not in name.parts):
            try:
                stat = dict(line.split(maxsplit=1) for line in (group / "memory.stat").read_text().splitlines())
                yield int((group / limit).read_text()) - int(stat[taken])
            except (OSError, ValueError, KeyError):  # not there, or "max"
                continue

"""Requirements of PEFT, vLLM and SGLang on a LoRA: ranks, layers that go together, options to start a server with."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "MAX_LORA_RANKS",
    "LoRAExport",
    "companions",
    "notes_on",
    "pattern_of",
    "servers_with_lora",
    "short_names",
]

# Values that --max-lora-rank of vLLM may have.
MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# SGLang stacks these layers, and needs the others beside each.
COMPANIONS = {
    "q_proj": ("v_proj",),
    "k_proj": ("q_proj", "v_proj"),
    "v_proj": ("q_proj",),
    "up_proj": ("gate_proj",),
}
VLLM, SGLANG = "vllm", "sglang"
# Architectures that vLLM serves with LoRA, and SGLang without.
NOT_IN_SGLANG = frozenset({"bert", "opt", "roberta"})
# Ranks above an allowed one by less than this factor are worth a smaller limit of channels.
NEAR = 1.1


@dataclass(frozen=True, kw_only=True)
class LoRAExport:
    """A LoRA that was written; its text has the options to start a server with.

    Attributes:
        folder: with `adapter_config.json` and `adapter_model.safetensors`.
        rank: r, the number of channels of the layer with most of them.
        modules: names of the layers that have tensors, some of them zero.
        num_bytes: of the tensors.
        slice_bytes: of the new slices and the channels in the adapter, without the slices of the base.
        num_features: inputs and outputs of these layers together.
        itemsize: bytes of a number of the model.
        servers: that have LoRA for this model, of "vllm" and "sglang"; none for Conv1D weights (GPT-2).
        notes: sentences on what a server lacks, and on a smaller rank.
    """

    folder: Path
    rank: int
    modules: tuple[str, ...]
    num_bytes: int
    slice_bytes: int
    num_features: int
    itemsize: int
    servers: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def max_lora_rank(self) -> int:
        """The smallest rank that vLLM can be started with for this LoRA."""
        return min(rank for rank in MAX_LORA_RANKS if rank >= self.rank)

    @property
    def buffer_bytes(self) -> int:
        """Memory that vLLM reserves for each of its `--max-loras`, if it is started with `vllm_options`."""
        return self.max_lora_rank * self.num_features * self.itemsize

    @property
    def vllm_options(self) -> str | None:
        """The options of `vllm serve`; without the last one, it reserves buffers for all linear layers.

        None if vLLM has no LoRA for this model.
        """
        return self._options(VLLM, self.max_lora_rank)

    @property
    def sglang_options(self) -> str | None:
        """The options of `sglang.launch_server`, whose rank is not rounded up; None if it has no LoRA for the model."""
        return self._options(SGLANG, self.rank)

    def _options(self, server: str, rank: int) -> str | None:
        if server not in self.servers:
            return None
        names = " ".join(short_names(self.modules))
        return f"--enable-lora --max-lora-rank {rank} --lora-target-modules {names}"

    def __str__(self) -> str:
        """Return rank and sizes, the options and the notes, a line each."""
        names = ", ".join(short_names(self.modules))
        lines = [
            f"LoRA of rank {self.rank} in {len(self.modules)} layers ({names}), saved in {self.folder!s}",
            f"{_size(self.num_bytes)}; the slices of the adapter take {_size(self.slice_bytes)}.",
        ]
        if self.vllm_options is not None:
            lines.append(f"vLLM: {self.vllm_options} (reserves {_size(self.buffer_bytes)} for each adapter)")
        if self.sglang_options is not None:
            lines.append(f"SGLang: {self.sglang_options}")
        return "\n".join((*lines, *self.notes))


def short_names(modules: Iterable[str]) -> tuple[str, ...]:
    """Return the last parts of the names, each once."""
    return tuple(dict.fromkeys(module.rpartition(".")[2] for module in modules))


def pattern_of(module: str) -> str:
    """Replace the numbers in a name: the same layer of any block."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", module)


def companions(module: str) -> tuple[str, ...]:
    """Return the names of the layers that SGLang needs beside this one."""
    parent, _, name = module.rpartition(".")
    return tuple(f"{parent}.{other}" for other in COMPANIONS.get(name, ()))


def _missing_companions(modules: Iterable[str]) -> tuple[str, ...]:
    """Return the short names of layers that SGLang needs and that are not among these, sorted."""
    modules = set(modules)
    return tuple(sorted(short_names(other for name in modules for other in companions(name) if other not in modules)))


def servers_with_lora(model_type: str | None, *, transposed: bool) -> tuple[str, ...]:
    """Return the servers that have LoRA for a model.

    Args:
        model_type: the architecture; None if the model is not known.
        transposed: whether its weights are those of Conv1D.
    """
    if transposed:
        return ()
    return (VLLM,) if model_type in NOT_IN_SGLANG else (VLLM, SGLANG)


def notes_on(rank: int, modules: Iterable[str], *, servers: Collection[str], model_type: str | None) -> Iterator[str]:
    """Yield the notes of an export.

    Args:
        rank: r.
        modules: layers that have tensors.
        servers: that have LoRA for the model.
        model_type: the architecture; None if the model is not known, so that layers may lack companions.
    """
    if not servers:
        yield "vLLM and SGLang have no LoRA for GPT-2: serve the merged model."
        return
    if SGLANG not in servers:
        yield f"SGLang has no LoRA for {model_type}."
    missing = _missing_companions(modules) if model_type is None else ()
    if missing:
        yield f"SGLang needs zero tensors of {', '.join(missing)} too, if the model has these layers: pass `base`."
    below = max((step for step in MAX_LORA_RANKS if step < rank), default=0)
    if rank not in MAX_LORA_RANKS and rank <= NEAR * below:
        yield f"S2FTConfig(max_channels={below}) would fit into a rank of {below} for vLLM."


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.0f} MiB" if num_bytes >= 100 * 2**20 else f"{num_bytes / 2**20:.3g} MiB"

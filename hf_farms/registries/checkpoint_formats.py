"""CHECKPOINT_FORMATS: file formats of models."""

from __future__ import annotations

from dataclasses import dataclass

from hf_farms.registries.base import Entry, Registry

__all__ = ["CHECKPOINT_FORMATS", "FormatEntry"]


@dataclass(frozen=True, kw_only=True)
class FormatEntry(Entry):
    """A format. The entries are tried in order, converted formats first.

    For a format that transformers reads, the function gets a lookup of files by name (returns a local path or None),
    and returns the path of the weights or of the index of their shards; None if the model has no such files.

    For a `converted` format, the function is called as `function(model, allow_pickle=...)` with a
    `hf_farms.loading.names.ModelRef`, and returns a `hf_farms.loading.resolution.Replacement`, or None for a model of
    another format. It must not download weights.

    Attributes:
        files: file name patterns; a folder of this format has a match for each of them.
        converted: transformers cannot read the format; another repository or a converted copy is loaded instead.
        pickled: reading needs `allow_pickle=True`. The function of a converted format checks this itself.
        sentence: a note for reports and cards, with placeholders `{name}` and `{replaced_by}`; may be empty.
    """

    files: tuple[str, ...]
    converted: bool = False
    pickled: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.needs != "nothing":
            raise ValueError(f"needs must be 'nothing' for a format of checkpoints, got {self.needs!r}.")
        if not self.files:
            raise ValueError("files must be patterns of file names, such as '*.safetensors', got none.")


CHECKPOINT_FORMATS: Registry[FormatEntry] = Registry(
    "format",
    {
        "meta": FormatEntry(
            needs="nothing",
            function="hf_farms.loading.meta_layout:find_meta_checkpoint",
            files=("params.json", "consolidated.*"),
            converted=True,
            pickled=True,
            sentence="{name!r} has Meta's own layout, without a config.json: {replaced_by}.",
        ),
        "safetensors": FormatEntry(
            needs="nothing",
            function="hf_farms.loading.files:find_safetensors",
            files=("*.safetensors",),
            sentence="",
        ),
        "pickle": FormatEntry(
            needs="nothing",
            function="hf_farms.loading.files:find_pickled",
            files=("*.bin",),
            pickled=True,
            sentence="",
        ),
    },
)

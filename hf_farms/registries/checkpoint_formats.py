"""CHECKPOINT_FORMATS: file formats of models."""

from __future__ import annotations

from dataclasses import dataclass

from hf_farms.registries.base import Entry, Registry

__all__ = ["CHECKPOINT_FORMATS", "FormatEntry"]


@dataclass(frozen=True, kw_only=True)
class FormatEntry(Entry):
    """A format. The entries are tried in order, first those that are converted.

    Of a format that transformers reads, the function is called with a function that finds a file by its name (a path
    on this machine, or None), and returns the path of the weights, or of the index of their shards; None: there are
    none.

    Of a format that is `converted`, the function is called as `function(model, allow_pickle=...)` with a
    `hf_farms.loading.names.ModelRef`, and returns a `hf_farms.loading.resolution.Replacement`, or None for a model that
    is not stored so. It must not download weights.

    Attributes:
        files: patterns of names; a folder with a file for each of them may be of this format.
        converted: transformers cannot read it: another repository or a converted copy is loaded instead.
        pickled: the user must allow it to be read. A function of a converted format refuses it itself.
        sentence: a note for reports and cards; `{name}` and `{replaced_by}` are filled in. Empty: nothing to say.
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

"""Calibration and evaluation texts of a prune."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hf_farms.blocks import StreamedBlockSource
from hf_farms.data.calibration import calibration_sequences, context_limit, continued, passages
from hf_farms.data.generation import first_token, require_writer
from hf_farms.data.texts import BUILT_IN, Tokenizer, named_text, read_text, tokenize
from hf_farms.errors import DataError, HfFarmsWarning
from hf_farms.metrics.nll import TextNll, require_causal, text_nll
from hf_farms.processes import ONE_PROCESS, WorkingRanks, from_first_rank
from hf_farms.progress import Progress, one_stage
from hf_farms.reports import PerplexityRecord

if TYPE_CHECKING:
    from hf_farms.config import EvaluationConfig
    from hf_farms.loading.opening import LoadedModel
    from hf_farms.output.folder import OutputFolder
    from hf_farms.output.recipe import Recipe

__all__ = [
    "WRITTEN_NAME",
    "Calibration",
    "EvaluationText",
    "calibration_passages",
    "evaluation_tokens",
    "load_nll",
    "perplexity_record",
    "same_text_note",
    "save_nll",
]


# In the state folder of unfinished work: calibration sequences, those that the model wrote included.
WRITTEN_NAME = "calibration.safetensors"


class EvaluationText:
    """The tokenized evaluation text, read before anything expensive.

    Args:
        config: names a text.
        loaded: a causal language model with a tokenizer.
    """

    def __init__(self, config: EvaluationConfig, loaded: LoadedModel) -> None:
        require_causal(loaded.source.model)
        assert loaded.tokenizer is not None
        self.ids, self.context_length = evaluation_tokens(config, model=loaded.source.model, tokenizer=loaded.tokenizer)
        self.max_windows = config.max_windows
        length = self.context_length
        lowered = length < config.context_length
        self.notes = (
            (f"Perplexity uses windows of {length} tokens, the context length of the model.",) if lowered else ()
        )

    @property
    def num_tokens(self) -> int:
        """Tokens that are measured."""
        windows = len(self.ids) // self.context_length
        return self.context_length * min(windows, self.max_windows or windows)

    def measure(
        self, loaded: LoadedModel, progress: Progress, stage: str, ranks: WorkingRanks = ONE_PROCESS
    ) -> TextNll:
        """Measure the NLL of the text with the current weights; several processes share its windows."""
        return text_nll(
            loaded.source if isinstance(loaded.source, StreamedBlockSource) else loaded.source.model,
            self.ids,
            context_length=self.context_length,
            max_windows=self.max_windows,
            ranks=ranks,
            progress=one_stage(progress, stage),
        )

    def measure_once(self, loaded: LoadedModel, progress: Progress, stage: str, output: OutputFolder) -> TextNll:
        """Load the NLL that an earlier run measured at this stage, or measure it."""
        return output.load_or_compute(
            f"{stage.lower().replace(' ', '_')}.json",
            lambda: self.measure(loaded, progress, stage, output.ranks),
            save_nll,
            load_nll,
        )


def evaluation_tokens(config: EvaluationConfig, *, model: nn.Module, tokenizer: Tokenizer) -> tuple[Tensor, int]:
    """Return the token ids of an evaluation text, and the tokens of a window.

    Args:
        config: names a text.
        model: limits the window to its context length.
        tokenizer: of the model.

    Raises:
        DataError: the text is missing, or shorter than a window.
    """
    assert config.source is not None
    with named_text("evaluation"):
        text = read_text(config.source, column=config.column, subset=config.subset, split=config.split)
    ids = torch.tensor(tokenize(tokenizer, text))
    length = min(config.context_length, context_limit(model) or config.context_length)
    if len(ids) < length:
        raise DataError(
            f"evaluation text must have at least {length} tokens, got {len(ids)} in {config.source!r}.",
            hint="Give a longer text or a smaller `context_length`.",
        )
    return ids, length


def save_nll(nll: TextNll, path: Path) -> None:
    """Write what `load_nll` reads."""
    path.write_text(json.dumps(asdict(nll)), encoding="utf-8")


def load_nll(path: Path) -> TextNll:
    """Read what `save_nll` wrote."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    return TextNll(tuple(fields["windows"]), fields["context_length"], fields["num_tokens"])


Sequences = tuple[list[Tensor], list[str]]


def calibration_passages(recipe: Recipe, loaded: LoadedModel) -> Sequences:
    """Return the passages of the calibration text and notes on them; none where the recipe needs no text."""
    if not recipe.prune.needs_calibration or recipe.calibration.source == "self":
        return [], []
    return passages(recipe.calibration, model=loaded.source.model, tokenizer=loaded.tokenizer)


class Calibration:
    """The calibration sequences: passages of a text, and those that the model writes when they are needed.

    Args:
        recipe: names the text and the method, which may need none.
        loaded: the model and its tokenizer.
        read: of `calibration_passages`; read before the analysis, as a text may be too short. Text is written after it,
            as the model may have NaN.
        written: whether the model wrote its text in an earlier run that is continued.
    """

    def __init__(self, recipe: Recipe, loaded: LoadedModel, read: Sequences, *, written: bool = False) -> None:
        self._config, self._loaded, self._read = recipe.calibration, loaded, read
        self._needed = recipe.prune.needs_calibration
        if self._needed and self._config.generates and not written:
            self._check_writer()

    def _check_writer(self) -> None:
        source = self._loaded.source
        require_writer(source.model, self._config, length=self._length)
        if self._config.source == "self":
            first_token(source.model, self._loaded.tokenizer)
        if isinstance(source, StreamedBlockSource):
            instead = (
                "Give a text with `calibration`" if self._config.source == "self" else "Set `num_continuations` to 0"
            )
            warnings.warn(
                "the model writes calibration text while its blocks are on disk: all of them are read for every "
                f"token. {instead}.",
                HfFarmsWarning,
                stacklevel=3,
            )

    def _sequences(self, progress: Progress) -> Sequences:
        model, tick = self._loaded.source.model, one_stage(progress, "Writing calibration text")
        if self._config.source != "self":
            return continued(self._read, self._config, model=model, progress=tick)
        return calibration_sequences(self._config, model=model, tokenizer=self._loaded.tokenizer, progress=tick)

    @property
    def known(self) -> list[Tensor]:
        """The sequences that do not need the model; empty for its own text."""
        return self._read[0]

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences, those that are not written yet included."""
        if not self._needed:
            return 0
        return sum(ids.numel() for ids in self.known) + self.num_written_tokens

    @property
    def num_written_tokens(self) -> int:
        """Tokens of the sequences that the model writes."""
        return self._unwritten * self._length if self._needed else 0

    @property
    def num_sequences(self) -> int:
        """Number of all sequences, those that are not written yet included."""
        return sum(len(ids) for ids in self.known) + self._unwritten if self._needed else 0

    @property
    def _unwritten(self) -> int:
        config = self._config
        return config.num_sequences if config.source == "self" else config.total_sequences - config.num_sequences

    @property
    def _length(self) -> int:
        length = self._config.sequence_length
        return min(length, context_limit(self._loaded.source.model) or length)

    def batches(self, output: OutputFolder, progress: Progress) -> Sequences:
        """Return the sequences and notes on them; the model writes only once.

        Args:
            output: keeps what the model wrote.
            progress: called with the tokens that it wrote.
        """
        if not (self._needed and self._config.generates):
            return self._read
        with self._loaded.source.whole():
            # Written by one process: others might sample other tokens.
            return output.load_or_compute(
                WRITTEN_NAME,
                lambda: from_first_rank(lambda: self._sequences(progress), output.ranks),
                _save_sequences,
                _load_sequences,
            )


def _save_sequences(sequences: Sequences, path: Path) -> None:
    batches, notes = sequences
    save_file({f"{i:06d}": ids for i, ids in enumerate(batches)}, path, metadata={"notes": json.dumps(notes)})


def _load_sequences(path: Path) -> Sequences:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        notes = json.loads((file.metadata() or {})["notes"])
    return [ids for _, ids in sorted(load_file(path).items())], notes


def same_text_note(recipe: Recipe) -> tuple[str, ...]:
    """Return a note if calibration and evaluation use the same kind of text: it lowers the perplexity."""
    seen, tested = recipe.calibration, recipe.evaluation
    if not recipe.prune.needs_calibration or seen.source != tested.source:
        return ()
    if seen.source == BUILT_IN or (seen.split != tested.split and not Path(seen.source).exists()):
        return (
            f"Calibration and evaluation text are of one kind ({seen.source}), no passage in both: the perplexity "
            "says less about other text.",
        )
    return (f"Calibration and evaluation use the same text ({seen.source}): the perplexity flatters the pruned model.",)


def perplexity_record(
    config: EvaluationConfig, dtype: str, *, dense: TextNll | None, pruned: TextNll | None, uniform: TextNll | None
) -> PerplexityRecord | None:
    """Return perplexities before, after and with uniform sparsity, with paired differences; None without a text."""
    if dense is None or pruned is None:
        return None
    difference, stderr = pruned.difference(dense)
    against, against_stderr = pruned.difference(uniform) if uniform is not None else (None, None)
    return PerplexityRecord(
        config=config,
        context_length=dense.context_length,
        num_tokens=dense.num_tokens,
        dtype=dtype,
        dense=dense.perplexity,
        pruned=pruned.perplexity,
        nll_difference=difference,
        nll_difference_stderr=stderr,
        uniform=uniform.perplexity if uniform is not None else None,
        uniform_nll_difference=against,
        uniform_nll_difference_stderr=against_stderr,
    )

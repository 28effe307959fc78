"""Selection sequences: a text in two halves, for searches and for recoveries, apart from calibration and evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hf_farms.config import SelectionConfig
from hf_farms.data.batches import named_batches
from hf_farms.data.calibration import context_limit
from hf_farms.data.texts import BUILT_IN, Tokenizer, named_text, read_text, tokenize
from hf_farms.errors import DataError

__all__ = [
    "ACCEPTANCE_TOKENS",
    "MAX_TOKENS",
    "Selection",
    "acceptance_sequences",
    "check_selection_apart",
    "read_selection",
    "selection_sequences",
    "split_selection",
]

# Tokens of each half that are used: more cost time, and the choice hardly changes.
MAX_TOKENS = 18_432
# Tokens of the second half on which each fit of a recovery is measured.
ACCEPTANCE_TOKENS = 4_096
# A sequence is in another text if this share of its pieces of so many tokens is, and at least so many of them, or all:
# one piece may be a phrase that all texts of a kind have.
OVERLAP, PIECE, PIECES = 0.5, 16, 3


class Selection(NamedTuple):
    """Selection data, one row of token ids per batch.

    Attributes:
        search: scores plans.
        acceptance: decides whether what a recovery fitted is kept; never scores plans.
    """

    search: list[dict[str, Tensor]]
    acceptance: list[dict[str, Tensor]]


def selection_sequences(
    config: SelectionConfig, *, model: nn.Module, tokenizer: Tokenizer | None
) -> tuple[list[Tensor], list[str]]:
    """Return the selection sequences in the order of the text, and notes.

    Args:
        config: source and length.
        model: limits the length to its context length.
        tokenizer: of the model.

    Returns:
        Token ids `(1, n)`; `split_selection` gives the halves. At most `MAX_TOKENS` of each half, evenly spaced.

    Raises:
        DataError: there is no tokenizer, or the text is missing or too short.
    """
    if tokenizer is None:
        raise DataError(
            "selection text must be tokenized, got a model without a tokenizer. Choose a fixed allocation "
            "and no recovery, or pass `selection` to `prune`."
        )
    split = "select" if config.source == BUILT_IN else config.split
    with named_text("selection"):
        text = read_text(config.source, column=config.column, subset=config.subset, split=split)
    ids = tokenize(tokenizer, text)
    length = min(config.sequence_length, context_limit(model) or config.sequence_length)
    count = len(ids) // length
    if count < 4:
        raise DataError(
            f"selection text must have at least {4 * length} tokens (four sequences, two in each half), got {len(ids)} "
            f"in {config.source!r}.",
            hint="Give a longer text with `selection`, or a smaller `SelectionConfig(sequence_length=...)`.",
        )
    most, half = max(2, MAX_TOKENS // length), -(-count // 2)
    chosen = [*_spaced(range(half), most), *_spaced(range(half, count), most)]
    notes = []
    if length < config.sequence_length:
        notes.append(f"Selection sequences have {length} tokens, the context length of the model.")
    return [torch.tensor(ids[i * length : (i + 1) * length])[None] for i in chosen], notes


def _spaced(items: Sequence[int], most: int) -> list[int]:
    count = min(len(items), most)
    return [items[i * len(items) // count] for i in range(count)]


def read_selection(
    selection: Iterable[Tensor | Mapping[str, Tensor]], *, vocabulary: int | None = None
) -> list[dict[str, Tensor]]:
    """Return selection data as mappings of model inputs, each `(b, n)`. A loader that shuffles must be read once.

    Args:
        selection: token ids `(b, n)` or `(n,)`, or model inputs by name.
        vocabulary: number of tokens that the model knows; None: unknown.

    Raises:
        DataError: something else, or no token ids.
    """
    try:
        return named_batches(selection, vocabulary=vocabulary)
    except DataError as error:
        raise DataError(f"selection{str(error).removeprefix('calibration')}", hint=error.hint) from error


def split_selection(selection: Iterable[Tensor | Mapping[str, Tensor]], *, vocabulary: int | None = None) -> Selection:
    """Split selection data into halves of whole rows: the first searches, the second accepts.

    Args:
        selection: token ids `(b, n)` or `(n,)`, or model inputs by name.
        vocabulary: number of tokens that the model knows; None: unknown.

    Raises:
        DataError: fewer than four rows, or no token ids.
    """
    rows = [
        {name: value[row : row + 1] for name, value in batch.items()}
        for batch in read_selection(selection, vocabulary=vocabulary)
        for row in range(len(next(iter(batch.values()))))
    ]
    if len(rows) < 4:
        raise DataError(
            f"selection must have at least four sequences, two in each half, got {len(rows)}. Pass more, or shorter "
            "ones."
        )
    half = -(-len(rows) // 2)
    return Selection(rows[:half], rows[half:])


def acceptance_sequences(
    selection: Iterable[Tensor | Mapping[str, Tensor]],
    *,
    calibration: Sequence[Mapping[str, Tensor]],
    vocabulary: int | None = None,
) -> list[dict[str, Tensor]]:
    """Return the sequences that decide whether what a recovery fitted is kept; nothing is fitted to them.

    Args:
        selection: as of `split_selection`.
        calibration: model inputs by name, that the recovery is fitted to.
        vocabulary: number of tokens that the model knows; None: unknown.

    Returns:
        One sequence per batch, of the second half: about `ACCEPTANCE_TOKENS`, evenly spaced, at least two sequences.

    Raises:
        DataError: fewer than four rows, no token ids, or calibration text among them.
    """
    halves = split_selection(selection, vocabulary=vocabulary)
    check_selection_apart(halves, calibration)
    longest = max(next(iter(batch.values())).shape[-1] for batch in halves.acceptance)
    chosen = _spaced(range(len(halves.acceptance)), max(2, ACCEPTANCE_TOKENS // max(1, longest)))
    return [halves.acceptance[index] for index in chosen]


def check_selection_apart(
    selection: Selection, other: Sequence[Mapping[str, Tensor]], *, text: str = "calibration"
) -> None:
    """Refuse selection data that shares sequences with another text, wherever they begin.

    Tokens that several selection sequences have, such as a system prompt or padding, are no evidence. Time and memory
    grow with the tokens of the selection, and time with those of the other text.

    Args:
        selection: of `split_selection`.
        other: model inputs by name.
        text: what the other text is used for.

    Raises:
        DataError: about half of a sequence of one is in the other.
    """
    rows = [row for batch in (*selection.search, *selection.acceptance) for row in _unmasked_rows(batch)]
    if _share_sequences(rows, (row for batch in other for row in _unmasked_rows(batch))):
        raise DataError(
            f"selection text must not be the {text} text, got a sequence that is in both.",
            hint="Give another text with `selection`.",
        )


def _share_sequences(rows: Sequence[list[int]], others: Iterable[list[int]]) -> bool:
    places, whole = _places(rows), {tuple(row) for row in rows if row}
    found_in: list[set[int]] = [set() for _ in rows]
    for other in others:
        pieces = _pieces(other)
        found = [piece for piece in pieces if piece in places]
        if tuple(other) in whole or _is_enough(len(found), len(pieces)):
            return True
        for piece in found:
            found_in[places[piece]].add(piece)
    # A row inside of a longer one has at least so many pieces of that one.
    counts = [max(1, (len(row) - PIECE + 1) // PIECE) for row in rows]
    return any(_is_enough(len(found), count) for found, count in zip(found_in, counts, strict=True))


def _places(rows: Sequence[list[int]]) -> dict[int, int]:
    """Return hash -> row of all pieces, wherever they begin, that only one row has."""
    places: dict[int, int] = {}
    for number, row in enumerate(rows):
        for start in range(len(row) - PIECE + 1):
            piece = hash(tuple(row[start : start + PIECE]))
            places[piece] = number if places.get(piece, number) == number else -1
    return {piece: number for piece, number in places.items() if number >= 0}


def _pieces(row: list[int]) -> list[int]:
    """Return the hashes of the pieces of a row, side by side, and of its last tokens."""
    last = len(row) - PIECE
    starts = [*range(0, last + 1, PIECE), *([last] if last > 0 and last % PIECE else [])]
    return [hash(tuple(row[start : start + PIECE])) for start in starts]


def _is_enough(found: int, pieces: int) -> bool:
    return pieces > 0 and found >= max(OVERLAP * pieces, min(pieces, PIECES))


def _unmasked_rows(batch: Mapping[str, Tensor]) -> list[list[int]]:
    """Return the token ids of each row without padding, which any two texts share; none without token ids."""
    ids, mask = batch.get("input_ids"), batch.get("attention_mask")
    if ids is None:
        return []
    if mask is None or mask.shape != ids.shape:
        return list(ids.tolist())
    return [row[kept].tolist() for row, kept in zip(ids, mask.bool(), strict=True)]

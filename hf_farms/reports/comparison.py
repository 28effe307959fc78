"""Two spectral reports -> what differs between them. Loads no torch."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

from hf_farms.config import FarmsConfig
from hf_farms.reports import BlockSpectrum, LayerRecord, Report, SpectralReport

__all__ = [
    "AlphaDifference",
    "BlockComparison",
    "LayerComparison",
    "PairedErrors",
    "SpectralComparison",
    "check_alike",
    "check_blocks_match",
    "compare_spectra",
    "measurement_of",
]


@dataclass(frozen=True, kw_only=True)
class AlphaDifference:
    """Alpha of the same block or layer in two models.

    Attributes:
        first: alpha in the first model; None where there is none.
        first_stderr: its standard error.
        second: alpha in the second model.
        second_stderr: its standard error.
        difference: second minus first; above 0, the second model is less trained in this place.
        stderr: standard error of the difference, over pairs of windows where both models were measured in one run,
            else the root of the sum of both squares; None where either is missing.
    """

    first: float | None
    first_stderr: float | None
    second: float | None
    second_stderr: float | None
    difference: float | None
    stderr: float | None

    @property
    def beyond_two_errors(self) -> bool | None:
        """Whether the difference is larger than twice its error; None where one of them is missing."""
        if self.difference is None or self.stderr is None:
            return None
        return abs(self.difference) > 2 * self.stderr


@dataclass(frozen=True, kw_only=True)
class LayerComparison:
    """One layer of both models: its name in the first, its name in the second, its role."""

    name: str
    second_name: str
    role: str
    alpha: AlphaDifference


@dataclass(frozen=True, kw_only=True)
class BlockComparison:
    """One block of both models.

    Attributes:
        index: position in the first model.
        name: in the first model.
        second_name: in the second model.
        alpha: of the block.
        layers: those that both have.
    """

    index: int
    name: str
    second_name: str
    alpha: AlphaDifference
    layers: tuple[LayerComparison, ...]


@dataclass(frozen=True, kw_only=True)
class SpectralComparison(Report):
    """Alpha of two models that were measured alike, block by block and layer by layer.

    Attributes:
        first: hub id, folder name or class name of the first model.
        second: the same of the second.
        config: the measurement, with the window size that it came to.
        blocks: those that both have, in order of depth.
        notes: what a reader must know.
    """

    first: str
    second: str
    config: FarmsConfig
    blocks: tuple[BlockComparison, ...]
    notes: tuple[str, ...] = ()


class PairedErrors(Protocol):
    """Standard errors of differences over windows at the same places; None where windows cannot be paired."""

    def layer(self, first: LayerRecord, second: LayerRecord) -> float | None:
        """Return the error of the difference of a layer."""

    def block(self, pairs: Sequence[tuple[LayerRecord, LayerRecord]]) -> float | None:
        """Return the error of the difference of a block."""


def compare_spectra(
    first: SpectralReport, second: SpectralReport, *, paired: PairedErrors | None = None
) -> SpectralComparison:
    """Compare the alphas of two models, such as two checkpoints, or a model before and after fine-tuning.

    The error of a difference takes both models as independent. For two checkpoints of one model the errors are
    positively correlated (both share most of their weights, and the windows lie at the same places), so that it is
    conservative there: the true error is smaller. `paired` gives that.

    Args:
        first: the base of the comparison; differences are second minus first.
        second: measured with the same window size and fit. Blocks are matched by name; if no name is in both, by
            index. Layers are matched by name, those left over by block, role and order.
        paired: errors over pairs of windows; None takes the models as independent.

    Returns:
        What both have, with the difference of each block and layer and its standard error.

    Raises:
        ValueError: not measured alike, or the blocks cannot be matched.
    """
    config = measurement_of(first)
    check_alike(config, measurement_of(second))
    pairs = _match_blocks(first.blocks, second.blocks)
    errors = [paired.block(list(_match_layers(a, b))) if paired else None for a, b in pairs]
    blocks = tuple(
        BlockComparison(
            index=a.index,
            name=a.name,
            second_name=b.name,
            alpha=_difference(a, b, error),
            layers=_compare_layers(a, b, paired),
        )
        for (a, b), error in zip(pairs, errors, strict=True)
    )
    return SpectralComparison(
        first=first.model,
        second=second.model,
        config=config,
        blocks=blocks,
        notes=(
            *_notes_on_differences(blocks),
            *_note_on_shift(blocks, errors),
            *_notes_on_matching(first, second, pairs),
        ),
    )


def measurement_of(report: SpectralReport) -> FarmsConfig:
    """Return the config of a report, with the window size that was chosen for "auto".

    For a model of convolutions alone it came to none: their windows follow their own shapes.
    """
    return report.config if report.window_rows is None else replace(report.config, window_rows=report.window_rows)


def check_alike(first: FarmsConfig, second: FarmsConfig) -> None:
    """Refuse two measurements whose alphas cannot be compared.

    Raises:
        ValueError: they differ; each option that does is named.
    """
    options = [field.name for field in fields(first)]
    different = [name for name in options if getattr(first, name) != getattr(second, name)]
    if different:
        values = ", ".join(f"{name} {getattr(first, name)!r} and {getattr(second, name)!r}" for name in different)
        raise ValueError(
            f"spectra must be measured alike, got {values}. Measure the second model with the options of the first."
        )


def check_blocks_match(first: Sequence[str], second: Sequence[str]) -> None:
    """Refuse two models whose blocks cannot be matched, by their names alone.

    Raises:
        ValueError: no name in common, and other numbers of blocks.
    """
    if len(first) != len(second) and not set(first) & set(second):
        raise ValueError(
            f"models must have blocks of the same names or the same number of blocks, got {len(first)} and "
            f"{len(second)} blocks without a name in common."
        )


def _match_blocks(
    first: Sequence[BlockSpectrum], second: Sequence[BlockSpectrum]
) -> list[tuple[BlockSpectrum, BlockSpectrum]]:
    check_blocks_match([block.name for block in first], [block.name for block in second])
    named = {block.name: block for block in second}
    pairs = [(block, named[block.name]) for block in first if block.name in named]
    return pairs or list(zip(first, second, strict=True))


def _compare_layers(
    first: BlockSpectrum, second: BlockSpectrum, paired: PairedErrors | None
) -> tuple[LayerComparison, ...]:
    return tuple(
        LayerComparison(
            name=a.name,
            second_name=b.name,
            role=a.role,
            alpha=_difference(a, b, paired.layer(a, b) if paired else None),
        )
        for a, b in _match_layers(first, second)
    )


def _match_layers(first: BlockSpectrum, second: BlockSpectrum) -> Iterator[tuple[LayerRecord, LayerRecord]]:
    """Pairs in the order of the first block."""
    named = {layer.name: layer for layer in second.layers}
    common = named.keys() & {layer.name for layer in first.layers}
    by_role: tuple[dict[str, list[LayerRecord]], ...] = (defaultdict(list), defaultdict(list))
    for grouped, block in zip(by_role, (first, second), strict=True):
        for layer in block.layers:
            if layer.name not in common:
                grouped[layer.role].append(layer)
    partners = {
        id(a): b
        for role, layers in by_role[0].items()
        # Of four experts and eight none is the same as another.
        if len(layers) == len(by_role[1][role])
        for a, b in zip(layers, by_role[1][role], strict=True)
    }
    for layer in first.layers:
        partner = named[layer.name] if layer.name in common else partners.get(id(layer))
        if partner is not None:
            yield layer, partner


def _difference(
    first: BlockSpectrum | LayerRecord, second: BlockSpectrum | LayerRecord, paired: float | None
) -> AlphaDifference:
    a, b = first.alpha, second.alpha
    errors = first.alpha_stderr, second.alpha_stderr
    if paired is None and errors[0] is not None and errors[1] is not None:
        paired = math.hypot(errors[0], errors[1])
    return AlphaDifference(
        first=a,
        first_stderr=errors[0],
        second=b,
        second_stderr=errors[1],
        difference=None if a is None or b is None else b - a,
        stderr=paired,
    )


def _notes_on_differences(blocks: Sequence[BlockComparison]) -> Iterator[str]:
    layers = [layer for block in blocks for layer in block.layers]
    for what, items in (("blocks", blocks), ("layers", layers)):
        known = [clear for item in items if (clear := item.alpha.beyond_two_errors) is not None]
        if known:
            yield (
                f"{sum(known)} of {len(known)} {what} differ by more than two standard errors; by chance alone about "
                f"{0.05 * len(known):.2g} would."
            )
        if len(known) < len(items):
            yield f"{len(items) - len(known)} of {len(items)} {what} have no standard error of the difference."


def _note_on_shift(blocks: Sequence[BlockComparison], paired: Sequence[float | None]) -> Iterator[str]:
    found = [(b.alpha.difference, b.alpha.stderr, pair) for b, pair in zip(blocks, paired, strict=True)]
    known = [(value, error, pair) for value, error, pair in found if value is not None and error is not None]
    if len(known) > 1:
        mean = math.fsum(value for value, _, _ in known) / len(known)
        error = math.sqrt(math.fsum(error**2 for _, error, _ in known)) / len(known)
        count = sum(pair is not None for _, _, pair in known)
        how = "windows at the same places are paired" if count else "errors as of independent models, not paired"
        if 0 < count < len(known):
            how += f" in {count} of them"
        yield f"Mean over {len(known)} blocks, second minus first: {mean:+.4f} ± {error:.4f} ({how})."


def _notes_on_matching(
    first: SpectralReport, second: SpectralReport, pairs: Sequence[tuple[BlockSpectrum, BlockSpectrum]]
) -> Iterator[str]:
    if pairs and pairs[0][0].name != pairs[0][1].name:
        names = f"{pairs[0][0].name} and {pairs[0][1].name}"
        yield f"No block has the same name in both, such as {names}: matched by index."
    layers = [pair for blocks in pairs for pair in _match_layers(*blocks)]
    for what, count, sizes in (
        ("blocks", len(pairs), [len(report.blocks) for report in (first, second)]),
        ("layers", len(layers), [sum(len(pair[i].layers) for pair in pairs) for i in (0, 1)]),
    ):
        if [count, count] != sizes:
            yield f"{count} {what} are in both; the first has {sizes[0]}, the second {sizes[1]}."
    other = [a.name for a, b in layers if a.window_shape != b.window_shape]
    if other:
        yield (
            f"{len(other)} of {len(layers)} layers were measured on windows of another shape in the two models, whose "
            f"alphas differ for that reason too, first {other[0]}."
        )

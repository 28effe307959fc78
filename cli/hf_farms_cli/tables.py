"""How results are shown at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from rich.table import Table

from hf_farms.comparison import AlphaDifference, SpectralComparison, measurement_of
from hf_farms.reports import PruneReport, SpectralReport
from hf_farms_cli.console import Format, out, print_notes, say

__all__ = ["print_comparison", "print_result", "print_spectra"]


def print_spectra(report: SpectralReport, shown: Format, *, by_layer: bool) -> None:
    """Print alpha by block or by layer in the format asked for."""
    if shown == "json":
        say(report.to_json(), newline=False)
    elif shown == "quiet":
        for block in report.blocks:
            say(_number(block.alpha, 4, none=""))
    else:
        out.print(_layers(report) if by_layer else _blocks(report))
        size = _size(measurement_of(report).window_rows)
        out.print(f"{size}, fit {report.config.fit}. {MEANING}", soft_wrap=True)
        print_notes(report.notes)


MEANING = "A larger alpha means a lighter tail, a less trained layer."


def _size(window_rows: int | Literal["auto"] | None) -> str:
    if window_rows == "auto":
        return "convolutions cut by their own shape"
    return "whole matrices" if window_rows is None else f"windows of {window_rows} rows"


def _blocks(report: SpectralReport) -> Table:
    table = _table(f"{report.model}: alpha by block", "block", "alpha", "± stderr", "windows")
    for block in report.blocks:
        windows = sum(layer.num_windows for layer in block.layers)
        table.add_row(block.name, _number(block.alpha), _number(block.alpha_stderr, 4), str(windows))
    for layer in report.outside:
        table.add_row(layer.name, _number(layer.alpha), _number(layer.alpha_stderr, 4), str(layer.num_windows))
    return table


def _layers(report: SpectralReport) -> Table:
    table = _table(f"{report.model}: alpha by layer", "layer", "alpha", "± stderr", "windows")
    for layer in [*(layer for block in report.blocks for layer in block.layers), *report.outside]:
        shape = f"{layer.num_windows} of {layer.window_shape[0]}×{layer.window_shape[1]}"
        table.add_row(layer.name, _number(layer.alpha), _number(layer.alpha_stderr, 4), shape)
    return table


def print_comparison(comparison: SpectralComparison, shown: Format, *, by_layer: bool) -> None:
    """Print the alphas of two models and their difference in the format asked for."""
    if shown == "json":
        say(comparison.to_json(), newline=False)
    elif shown == "quiet":
        for block in comparison.blocks:
            say(_number(block.alpha.difference, 4, none=""))
    else:
        what = "layer" if by_layer else "block"
        title = f"alpha by {what}: {comparison.first} (first), {comparison.second} (second)"
        table = _table(title, what, "first", "second", "difference", "± stderr", "")
        for block in comparison.blocks:
            for item in block.layers if by_layer else (block,):
                table.add_row(item.name, *_difference(item.alpha))
        out.print(table)
        size = _size(comparison.config.window_rows)
        out.print(f"{size}, fit {comparison.config.fit}. * beyond two standard errors. {MEANING}", soft_wrap=True)
        print_notes(comparison.notes)


def _difference(alpha: AlphaDifference) -> tuple[str, str, str, str, str]:
    change = "–" if alpha.difference is None else f"{alpha.difference:+.3f}"
    return (
        _number(alpha.first),
        _number(alpha.second),
        change,
        _number(alpha.stderr, 4),
        "*" if alpha.beyond_two_errors else "",
    )


def print_result(report: PruneReport, folder: Path, url: str | None, shown: Format) -> None:
    """Print the result of a prune in the format asked for."""
    if shown == "json":
        say(report.to_json(), newline=False)
    elif shown == "quiet":
        say(url or str(folder))
    else:
        _print_pruned(report, folder, url)


def _print_pruned(report: PruneReport, folder: Path, url: str | None) -> None:
    title = f"{report.model}, {report.config.method}, {report.config.allocation}"
    table = _table(title, "block", "alpha", "± stderr", "alpha after", "target", "measured sparsity")
    before = {b.index: b for b in report.before.blocks} if report.before else {}
    after = {b.index: b for b in report.after.blocks} if report.after else {}
    for block in report.blocks:
        dense, pruned = before.get(block.index), after.get(block.index)
        table.add_row(
            block.name,
            _number(dense.alpha if dense else None),
            _number(dense.alpha_stderr if dense else None, 4),
            _number(pruned.alpha if pruned else None),
            f"{block.target:.2%}",
            f"{block.sparsity:.2%}",
        )
    out.print(table)
    out.print(
        f"Sparsity: {report.sparsity:.4%} of the pruned layers, {report.parameter_sparsity:.2%} of all parameters."
    )
    if (p := report.perplexity) is not None and p.dense is not None and p.pruned is not None:
        out.print(
            f"Perplexity: {p.dense:.2f} dense, {p.pruned:.2f} pruned ({p.config.source}, {p.num_tokens} tokens, "
            f"context {p.context_length}, {p.dtype})."
        )
    print_notes(report.notes)
    out.print(f"[green]✓[/green] {folder}", soft_wrap=True)
    if url:
        out.print(f"  url: {url}", soft_wrap=True)


def _table(title: str, first: str, *others: str) -> Table:
    """A name on the left, numbers on the right."""
    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for heading in others:
        table.add_column(heading, justify="right")
    return table


def _number(value: float | None, digits: int = 3, none: str = "–") -> str:
    return none if value is None else f"{value:.{digits}f}"

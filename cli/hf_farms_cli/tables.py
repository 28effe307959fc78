"""Tables of spectra, of comparisons and of a pruned model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from hf_farms.reports import PruneReport, SpectralReport, acceptance_text
from hf_farms.reports.comparison import AlphaDifference, SpectralComparison, measurement_of
from hf_farms.reports.standing_out import standing_out_of
from hf_farms_cli.console import Format, out, print_done, print_hint, print_notes, print_remark, say
from hf_farms_cli.results import next_steps, readable_size, size_on_disk

__all__ = ["print_comparison", "print_result", "print_spectra", "print_table"]

MISSING = "–"


def print_table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]], output_format: Format) -> None:
    """Print a table whose first column is a name and whose others are numbers, none of them cut.

    Human: ruled on a terminal, else aligned with spaces, however wide. Agent: a line of headings and a line per row,
    with tabs between, and nothing where a number is missing.
    """
    if output_format == "agent":
        for row in ([heading.removeprefix("± ") for heading in headings], *rows):
            say("\t".join("" if cell == MISSING else cell for cell in row))
    elif out.is_terminal:
        _draw(title, headings, rows)
    else:
        lines = [list(headings), *map(list, rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        say(title)
        for name, *numbers in lines:
            cells = [name.ljust(widths[0]), *(n.rjust(w) for n, w in zip(numbers, widths[1:], strict=True))]
            say("  ".join(cells).rstrip())


def _draw(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD)
    for index, heading in enumerate(headings):
        # Names wrap on a narrow terminal, numbers never do.
        table.add_column(heading, justify="right" if index else "left", no_wrap=index > 0, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    out.print(table, soft_wrap=False)


def print_spectra(report: SpectralReport, output_format: Format, *, by_layer: bool) -> None:
    """Print alpha by block or by layer in the given format."""
    if output_format == "json":
        say(report.to_json(), newline=False)
    elif output_format == "quiet":
        for block in report.blocks:
            say(_number(block.alpha, 4, none=""))
    else:
        unit = "layer" if by_layer else "block"
        headings = (unit, "alpha", "± stderr", "windows", *(() if by_layer else ("stands out",)))
        rows = _layers(report) if by_layer else _blocks(report)
        print_table(f"{report.model}: alpha by {unit}", headings, rows, output_format)
        size = _size(measurement_of(report).window_rows)
        print_remark(f"{size}, fit {report.config.fit}. {MEANING}", output_format)
        print_remark(standing_out_of(report).sentence, output_format)
        print_notes(report.notes)


MEANING = "A larger alpha means a lighter tail, a less trained layer."


def _size(window_rows: int | Literal["auto"] | None) -> str:
    if window_rows == "auto":
        return "windows sized by the shape of each convolution"
    return "whole matrices" if window_rows is None else f"windows of {window_rows} rows"


def _blocks(report: SpectralReport) -> list[tuple[str, ...]]:
    outliers = standing_out_of(report).indices
    rows = [
        (b.name, b.alpha, b.alpha_stderr, sum(layer.num_windows for layer in b.layers), "*" * (b.index in outliers))
        for b in report.blocks
    ]
    rows += [(layer.name, layer.alpha, layer.alpha_stderr, layer.num_windows, "") for layer in report.outside]
    return [
        (name, _number(alpha), _number(stderr, 4), str(windows), mark) for name, alpha, stderr, windows, mark in rows
    ]


def _layers(report: SpectralReport) -> list[tuple[str, ...]]:
    layers = [*(layer for block in report.blocks for layer in block.layers), *report.outside]
    windows = [f"{layer.num_windows} of {layer.window_shape[0]}×{layer.window_shape[1]}" for layer in layers]
    return [
        (layer.name, _number(layer.alpha), _number(layer.alpha_stderr, 4), size)
        for layer, size in zip(layers, windows, strict=True)
    ]


def print_comparison(comparison: SpectralComparison, output_format: Format, *, by_layer: bool) -> None:
    """Print the alphas of two models and their difference in the given format."""
    if output_format == "json":
        say(comparison.to_json(), newline=False)
    elif output_format == "quiet":
        for block in comparison.blocks:
            say(_number(block.alpha.difference, 4, none=""))
    else:
        unit = "layer" if by_layer else "block"
        title = f"alpha by {unit}: {comparison.first} (first), {comparison.second} (second)"
        rows = [
            (item.name, *_difference(item.alpha))
            for block in comparison.blocks
            for item in (block.layers if by_layer else (block,))
        ]
        print_table(title, (unit, "first", "second", "difference", "± stderr", ">2 stderr"), rows, output_format)
        size = _size(comparison.config.window_rows)
        print_remark(f"{size}, fit {comparison.config.fit}. * beyond two standard errors. {MEANING}", output_format)
        print_notes(comparison.notes)


def _difference(alpha: AlphaDifference) -> tuple[str, str, str, str, str]:
    change = MISSING if alpha.difference is None else f"{alpha.difference:+.3f}"
    return (
        _number(alpha.first),
        _number(alpha.second),
        change,
        _number(alpha.stderr, 4),
        "*" if alpha.beyond_two_errors else "",
    )


def print_result(report: PruneReport, folder: Path, url: str | None, output_format: Format) -> None:
    """Print the result of a prune in the given format."""
    if output_format == "json":
        say(report.to_json(), newline=False)
    elif output_format == "quiet":
        say(url or str(folder))
    else:
        title = f"{report.model}, {report.config.method}, {report.config.allocation}"
        headings = ("block", "alpha", "± stderr", "alpha after", "target", "measured sparsity")
        print_table(title, headings, _pruned(report), output_format)
        if output_format == "human":
            _print_summary(report)
        print_notes(report.notes)
        numbers = _numbers(report) if output_format == "agent" else {}
        steps = next_steps(report, folder, pushed=url is not None)
        if output_format == "agent":
            print_done(str(folder), output_format, folder=folder, url=url, bytes=size_on_disk(folder), **numbers)
            print_hint("; ".join(steps), output_format)
        else:
            print_done(f"{folder}, {readable_size(size_on_disk(folder))}", output_format, url=url)
            for line in steps:
                say(f"  {line}")


def _pruned(report: PruneReport) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for block, dense, pruned in report.blocks_with_spectra():
        alphas = (
            _number(dense.alpha if dense else None),
            _number(dense.alpha_stderr if dense else None, 4),
            _number(pruned.alpha if pruned else None),
        )
        rows.append((block.name, *alphas, f"{block.target:.2%}", f"{block.sparsity:.2%}"))
    return rows


def _print_summary(report: PruneReport) -> None:
    say(f"Sparsity: {report.sparsity:.4%} of the pruned layers, {report.parameter_sparsity:.2%} of all parameters.")
    if (errors := report.recovery_errors()) is not None:
        before, after = errors
        say(
            f"Recovery: error {before:.3g} → {after:.3g} (median of the submodules, relative to the variance of the "
            f"ideal outputs, on {acceptance_text(report.acceptance)})."
        )
    if (trained := report.distillation) is not None:
        kept = "" if trained.accepted else ", so that the weights before were kept"
        loss = "not finite" if trained.divergence is None else f"{trained.divergence:.4g}"
        say(
            f"Distillation: KL to the dense model {trained.divergence_before:.4g} → {loss} nats per token after "
            f"{trained.steps} steps{kept} (on {acceptance_text(report.acceptance)})."
        )
    if report.search is not None:
        say(report.search.sentence)
    p = report.perplexity
    if p is not None and p.dense is not None and p.pruned is not None:
        uniform = f", {p.uniform:.2f} with uniform sparsity" if p.uniform is not None else ""
        text = f"{p.config.source}, {p.num_tokens} tokens, context {p.context_length}, {p.dtype}"
        say(f"Perplexity: {p.dense:.2f} dense, {p.pruned:.2f} pruned{uniform} ({text}).")


def _numbers(report: PruneReport) -> dict[str, float | None]:
    p = report.perplexity
    return {
        "sparsity": report.sparsity,
        "parameter_sparsity": report.parameter_sparsity,
        "dense_perplexity": p.dense if p else None,
        "pruned_perplexity": p.pruned if p else None,
        "uniform_perplexity": p.uniform if p else None,
    }


def _number(value: float | None, digits: int = 3, none: str = MISSING) -> str:
    return none if value is None else f"{value:.{digits}f}"

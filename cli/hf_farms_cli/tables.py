"""How a prune is shown at the end."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.table import Table

from hf_farms.reports import PruneReport
from hf_farms_cli.analyze import number
from hf_farms_cli.console import Format, err, out

__all__ = ["print_result"]


def print_result(report: PruneReport, folder: Path, url: str | None, shown: Format) -> None:
    """Print the result in the format asked for."""
    if shown == "json":
        typer.echo(report.to_json(), nl=False)
    elif shown == "quiet":
        typer.echo(url or str(folder))
    else:
        _print_human(report, folder, url)


def _print_human(report: PruneReport, folder: Path, url: str | None) -> None:
    table = Table(title=f"{report.model}, {report.config.method}, {report.config.allocation}", title_justify="left")
    for heading in ("block", "alpha", "± stderr", "alpha after", "target", "measured sparsity"):
        table.add_column(heading, justify="left" if heading == "block" else "right")
    before = {b.index: b for b in report.before.blocks} if report.before else {}
    after = {b.index: b for b in report.after.blocks} if report.after else {}
    for block in report.blocks:
        dense, pruned = before.get(block.index), after.get(block.index)
        table.add_row(
            block.name,
            number(dense.alpha if dense else None),
            number(dense.alpha_stderr if dense else None, 4),
            number(pruned.alpha if pruned else None),
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
    for note in report.notes:
        err.print(f"Note: {note}", soft_wrap=True)
    out.print(f"[green]✓[/green] {folder}", soft_wrap=True)
    if url:
        out.print(f"  url: {url}", soft_wrap=True)

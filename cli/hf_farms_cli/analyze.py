"""`hf-farms analyze MODEL`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from hf_farms.config import FarmsConfig
from hf_farms_cli.console import check_format, err, guarded, out, quiet_transformers, stages

if TYPE_CHECKING:
    from hf_farms.config import Fit
    from hf_farms.reports import SpectralReport

DEFAULT = FarmsConfig()


@guarded
def analyze_command(
    model: Annotated[str, typer.Argument(help="Hub id, folder, or `demo`.", metavar="MODEL")],
    window_rows: Annotated[
        str, typer.Option(help="Rows of a window: a number, `auto`, or `none` for whole matrices.")
    ] = str(DEFAULT.window_rows),
    aspect_ratio: Annotated[float, typer.Option(help="Columns / rows of a window.")] = DEFAULT.aspect_ratio,
    windows_per_dim: Annotated[str, typer.Option(help="Windows along each side: a number or `auto`.")] = str(
        DEFAULT.windows_per_dim
    ),
    fit: Annotated[str, typer.Option(help="Where the tail starts: mid, peak or goodness_of_fit.")] = DEFAULT.fit,
    layers: Annotated[bool, typer.Option("--layers", help="One row per layer instead of per block.")] = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the report to this JSON file.")] = None,
    dtype: Annotated[str, typer.Option(help="Load weights as this dtype; `auto`: the checkpoint's own.")] = "auto",
    device: Annotated[str | None, typer.Option(help="Device; a GPU if there is one, else the CPU.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
    format_: Annotated[str, typer.Option("--format", help="human, json or quiet.")] = "human",
    quiet: Annotated[
        bool, typer.Option("-q", "--quiet", help="Print nothing but the mean alpha of each block.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and all warnings.")] = False,
) -> None:
    """Measure how heavy-tailed the weight spectrum of every layer is. A larger alpha means a less trained layer.

    Examples:  hf-farms analyze demo  |  hf-farms analyze Qwen/Qwen3-0.6B --format json
    """
    shown = check_format(format_, quiet)
    config = FarmsConfig(
        window_rows=None if window_rows == "none" else _count_or_auto("window_rows", window_rows),
        aspect_ratio=aspect_ratio,
        windows_per_dim=_count_or_auto("windows_per_dim", windows_per_dim),
        fit=cast("Fit", fit),
    )
    from hf_farms.checkpoint import load_model
    from hf_farms.spectra.analysis import analyze

    quiet_transformers()
    loaded = load_model(model, dtype=dtype, device=device, revision=revision, tokenizer=False)
    with stages(shown) as progress:
        report = analyze(loaded.model, config, progress=progress.of("Measuring spectra"))
    if output is not None:
        report.save(output)
    if shown == "json":
        typer.echo(report.to_json(), nl=False)
    elif shown == "quiet":
        for block in report.blocks:
            typer.echo(f"{block.alpha:.4f}" if block.alpha is not None else "")
    else:
        _print_table(report, layers)


def _count_or_auto(name: str, value: str) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"{name} must be a number or auto, got {value!r}.") from None


def _print_table(report: SpectralReport, by_layer: bool) -> None:
    from rich.table import Table

    table = Table(title=f"{report.model}: alpha by {'layer' if by_layer else 'block'}", title_justify="left")
    for heading in ("layer" if by_layer else "block", "alpha", "± stderr", "windows"):
        table.add_column(heading, justify="left" if heading in ("layer", "block") else "right")
    for block in report.blocks:
        if by_layer:
            for layer in block.layers:
                shape = f"{layer.num_windows} of {layer.window_shape[0]}×{layer.window_shape[1]}"
                table.add_row(layer.name, number(layer.alpha), number(layer.alpha_stderr, 4), shape)
        else:
            table.add_row(
                block.name,
                number(block.alpha),
                number(block.alpha_stderr, 4),
                str(sum(layer.num_windows for layer in block.layers)),
            )
    out.print(table)
    size = "whole matrices" if report.window_rows is None else f"windows of {report.window_rows} rows"
    out.print(f"{size}, fit {report.config.fit}. A larger alpha means a lighter tail, a less trained layer.")
    for note in report.notes:
        err.print(f"Note: {note}", soft_wrap=True)


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table; a dash for None."""
    return "–" if value is None else f"{value:.{digits}f}"

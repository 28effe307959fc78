"""`hf-farms analyze MODEL [--compare OTHER]`: the options. The work is `analyze_checkpoint`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from hf_farms.config import BLOCK_SCORES, FITS, FarmsConfig
from hf_farms_cli.console import check_format, guarded, print_remark, quiet_transformers, stages
from hf_farms_cli.effects import AnalyzeOptions, warn_unused_options
from hf_farms_cli.options import (
    AllowPickleOption,
    DebugOption,
    DeviceOption,
    FormatOption,
    JsonOption,
    QuietOption,
    RevisionOption,
    UsageError,
    complete,
    model_argument,
    usage,
)

if TYPE_CHECKING:
    from hf_farms.config import BlockScore

DEFAULT = FarmsConfig()


@guarded
def analyze_command(
    model: Annotated[str, model_argument(", or a report written by --output")],
    compare: Annotated[
        str | None, typer.Option(metavar="OTHER", help="Compare with this model, measured with the same options.")
    ] = None,
    window_rows: Annotated[
        str, typer.Option(help="Rows per window: a number, `auto`, or `none` for whole matrices.")
    ] = str(DEFAULT.window_rows),
    aspect_ratio: Annotated[float, typer.Option(help="Columns divided by rows of a window.")] = DEFAULT.aspect_ratio,
    windows_per_dim: Annotated[str, typer.Option(help="Windows along each side: a number or `auto`.")] = str(
        DEFAULT.windows_per_dim
    ),
    fit: Annotated[
        str,
        typer.Option(help=f"Start of the tail: {', '.join(FITS)}.", autocompletion=complete(FITS)),
    ] = DEFAULT.fit,
    tail_divisor: Annotated[
        float, typer.Option(help="With --fit mid: the tail starts at eigenvalue N / divisor; above 1.")
    ] = DEFAULT.tail_divisor,
    released_peak_bound: Annotated[
        bool,
        typer.Option(
            "--released-peak-bound", help="With --fit peak: reproduce the units bug of the authors' released code."
        ),
    ] = DEFAULT.released_peak_bound,
    block_score: Annotated[
        str,
        typer.Option(
            help=f"How the alphas of a block's layers are combined: {', '.join(BLOCK_SCORES)}.",
            autocompletion=complete(BLOCK_SCORES),
        ),
    ] = DEFAULT.block_score,
    outside: Annotated[bool, typer.Option("--outside", help="Also measure embeddings and head.")] = False,
    layers: Annotated[bool, typer.Option("--layers", help="Print one row per layer instead of per block.")] = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the report to this JSON file.")] = None,
    figures: Annotated[Path | None, typer.Option(metavar="DIR", help="Save figures to this folder.")] = None,
    esd: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LAYER", help="With --figures: plot the spectrum of this layer; `*` is a wildcard; repeatable."
        ),
    ] = None,
    device: DeviceOption = None,
    revision: RevisionOption = None,
    allow_pickle: AllowPickleOption = False,
    format_: FormatOption = "auto",
    json_: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure how heavy-tailed the weight spectrum of every layer is. A larger alpha means a less trained layer.

    Weights are read one by one, so memory does not grow with the model. `accelerate launch --multi_gpu -m hf_farms_cli
    analyze MODEL` distributes the layers over several GPUs.

    Examples:
        hf-farms analyze demo
        hf-farms analyze Qwen/Qwen3-0.6B --figures out
        hf-farms analyze base-model --compare ./fine-tuned
        hf-farms analyze demo --json -o report.json
    """
    output_format = check_format(format_, quiet, json_)
    with usage():
        config = FarmsConfig(
            window_rows=None if window_rows == "none" else _count("window_rows", window_rows, "a number, auto or none"),
            aspect_ratio=aspect_ratio,
            windows_per_dim=_count("windows_per_dim", windows_per_dim, "a number or auto"),
            fit=fit,
            tail_divisor=tail_divisor,
            released_peak_bound=released_peak_bound,
            block_score=cast("BlockScore", block_score),
        )
    if esd and compare is not None:
        raise UsageError("esd must be left out with --compare, got both. Plot the spectra of each model by itself.")
    warn_unused_options(AnalyzeOptions(layers=layers, shown=output_format))
    from hf_farms.workflows.analyze import analyze_checkpoint, compare_checkpoints
    from hf_farms_cli.tables import print_comparison, print_spectra

    quiet_transformers()
    stored: list[str] = []
    with stages(output_format) as progress:
        options: dict[str, Any] = {
            "outside": outside,
            "output": output,
            "figures": figures,
            "device": device,
            "revision": revision,
            "allow_pickle": allow_pickle,
            "progress": progress,
            "on_stored": stored.append,
        }
        if compare is None:
            report = analyze_checkpoint(model, config, esd=esd or (), **options)
        else:
            comparison = compare_checkpoints(model, compare, config, **options)
    if compare is None:
        print_spectra(report, output_format, by_layer=layers)
    else:
        print_comparison(comparison, output_format, by_layer=layers)
    if stored:
        print_remark(f"Wrote {', '.join(stored)}.", output_format)


def _count(name: str, value: str, constraint: str) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"{name} must be {constraint}, got {value!r}.") from None

"""Tables of adapters: what one changes, how several overlap, and how to serve an export."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from hf_farms.reports.adapters import AdapterSummary
from hf_farms_cli.console import Format, print_done, print_hint, print_remark, say
from hf_farms_cli.tables import print_table

if TYPE_CHECKING:
    from hf_farms.s2ft.adapters.lora_servers import LoRAExport
    from hf_farms.workflows.adapter_folders import FusedAdapter

__all__ = ["print_adapter", "print_export", "print_overlaps"]

MEBIBYTE = 2**20


def print_adapter(name: str, summary: AdapterSummary, output_format: Format, *, by_weight: bool) -> None:
    """Print an adapter in the given format; quiet: base model, dtype, weights, channels and bytes, a line each."""
    base = summary.base_model or "unknown"
    if output_format == "json":
        say(summary.to_json(), newline=False)
        return
    if output_format == "quiet":
        for value in (base, summary.dtype, len(summary.patches), summary.channels, summary.num_bytes):
            say(str(value))
        return
    headings = ("weight" if by_weight else "layer", "side", *(() if by_weight else ("weights",)), "channels", "of")
    if by_weight:
        rows = [(p.name, p.side, f"{p.channels:,}", f"{p.size:,}") for p in summary.patches]
    else:
        rows = [(r.layer, r.side, str(r.weights), f"{r.channels:,}", f"{r.size:,}") for r in summary.layers]  # type: ignore[misc]
    print_table(f"{name}: channels by {headings[0]}", headings, rows, output_format)
    at = f" at {summary.base_revision}" if summary.base_revision else ""
    slices = f"with those of the base ({_size(summary.base_bytes)})" if summary.includes_base else "without the base"
    print_remark(
        f"Base model: {base}{at}. {summary.channels:,} channels of {len(summary.patches)} weights in {summary.dtype}, "
        f"{_size(summary.num_bytes)}, {slices}.",
        output_format,
    )


def print_overlaps(fused: FusedAdapter, output_format: Format) -> None:
    """Print the folder of a fused adapter, and the share of channels that several adapters have."""
    channels = {name: len(patch.indices) for name, patch in fused.adapter.patches.items()}
    share = sum(fused.overlaps[name] * count for name, count in channels.items()) / sum(channels.values())
    if output_format == "json":
        result = {"folder": str(fused.folder), "overlap": share, "overlaps": dict(fused.overlaps)}
        say(json.dumps(result, indent=2))
        return
    print_done("Fused", output_format, folder=fused.folder, overlap=f"{share:.1%}")
    if share > 0 and output_format == "human":
        rows = [(name, f"{overlap:.1%}") for name, overlap in fused.overlaps.items() if overlap > 0]
        print_table("Channels of more than one adapter", ("weight", "overlap"), rows, output_format)


def print_export(export: LoRAExport, output_format: Format) -> None:
    """Print folder, size and the options of the servers."""
    from hf_farms.s2ft.adapters.lora_servers import short_names

    names = short_names(export.modules)

    print_done(
        f"LoRA of rank {export.rank} in {len(export.modules)} layers written ({', '.join(names)})",
        output_format,
        folder=export.folder,
        rank=export.rank,
        bytes=export.num_bytes,
        slice_bytes=export.slice_bytes,
        vllm=export.vllm_options,
        sglang=export.sglang_options,
    )
    for note in export.notes:
        print_hint(note, output_format)


def _size(count: int) -> str:
    return f"{count / MEBIBYTE:,.1f} MiB" if count >= MEBIBYTE / 10 else f"{count:,} bytes"

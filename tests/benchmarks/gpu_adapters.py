"""The section `adapters` of gpu.py: switching adapters, and several of them in one batch."""

from adapters_measures import parallel, switching

SETTING = ("d", "channels", "r", "adapters", "tokens")
# Every row has all columns: the table is printed as it grows.
COLUMNS = ("own_ms", "lora_ms", "peft_ms", "lora/scatter", "lora/switch", "of_copy", "layer_ms", "router_added_ms")
COLUMNS += ("lora_added_ms", "lora/router added", "peft/router", "using_ms")


def adapters(options, *, ranks, counts, lengths):
    """Milliseconds of one layer, and ratios to LoRA with as many parameters; the tables of adapters.py."""
    d = options.width
    shared = {"layers": options.depth if options.small else 4, "repeats": options.repeats}
    if options.small:
        ranks, counts, lengths = [2], [1, 3], [1, 4]
    for row in switching(d, "bfloat16", options.device, ranks=ranks, **shared):
        yield _row("switching", row, own_ms=row["scatter_ms"], peft_ms=row["peft_set_adapter_ms"])
    routed = {"rank": ranks[0], "adapters": counts, "tokens": lengths}
    for row in parallel(d, "bfloat16", options.device, **routed, **shared):
        yield _row("parallel", row, own_ms=row["router_ms"])


def _row(table, row, **changes):
    row = row | changes
    return {"table": table} | {name: row.get(name) for name in (*SETTING, *COLUMNS)}

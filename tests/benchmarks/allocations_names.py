"""Names in the tables of allocations.py, and the comparisons that they have."""

from __future__ import annotations

from allocations_statistics import Row

NAMES = {
    "first": "first block of `farms`, others alike",
    "sorted": "`farms`, sorted by depth",
    "reversed": "`farms`, reversed",
    "shuffled": "`farms`, shuffled",
    "wide farms": "`farms`, spread 0.3",
    "wide ramp": "`ramp`, spread 0.3",
    "auto recovered": "`auto`, plans recovered before the choice",
    "auto half": "halfway from `uniform` to `auto`",
    "auto quarter": "a quarter of the way from `uniform` to `auto`",
    "uniform split": "`uniform`, blocks fitted to the passages alone",
}
METHODS = {"wanda": "Wanda", "sparsegpt": "SparseGPT", "magnitude": "magnitude"}
# Compared beside uniform, where a setting has both.
PAIRS = (
    ("auto", "tuned ramp"),
    ("auto", "wide ramp"),
    ("auto", "sensitivity"),
    ("auto", "random"),
    ("sensitivity", "tuned ramp"),
    ("farms", "tuned ramp"),
    ("farms", "sorted"),
    ("farms", "shuffled"),
    ("farms", "reversed"),
    ("farms", "first"),
    ("reversed", "tuned ramp"),
    ("tuned owl", "owl"),
    ("tuned dlp", "dlp"),
    ("auto recovered", "auto"),
    ("auto recovered", "farms"),
    ("auto recovered", "auto half"),
)
# Two settings of one allocation: a name of their difference, and the options of both.
SUBMODULE = {"recover": "submodule", "passes": 2, "written": 3, "data": 1}
GAINS = (
    ("swaps − none", {"refine": "swaps", "recover": "none"}, {"refine": "none", "recover": "none"}),
    (
        "Wanda + swaps − SparseGPT",
        {"method": "wanda", "refine": "swaps", "recover": "none"},
        {"method": "sparsegpt", "refine": "none", "recover": "none"},
    ),
    ("six − three passes", *({**SUBMODULE, "passes": passes, "written": 0} for passes in (6, 3))),
    ("continuations − six passes", SUBMODULE, {**SUBMODULE, "passes": 6, "written": 0}),
    ("continuations − four times the passages", SUBMODULE, {**SUBMODULE, "written": 0, "data": 4}),
    ("twice − the default passages and continuations", {**SUBMODULE, "data": 2}, SUBMODULE),
    ("`distill` − `submodule`", {**SUBMODULE, "recover": "distill", "passes": 3}, SUBMODULE),
)


def shown(allocation: str) -> str:
    """Return the name of an allocation in a table."""
    tuned = allocation.removeprefix("tuned ")
    return NAMES.get(allocation, f"`{tuned}`, tuned" if tuned != allocation else f"`{allocation}`")


def mask(row: Row) -> str:
    """Return the name of the masks of a row."""
    pattern = f" {row['pattern']}" if row["pattern"] != "unstructured" else ""
    return f"{METHODS[row['method']]}{pattern}{' + swaps' if row['refine'] != 'none' else ''}"


def recovery(row: Row) -> str:
    """Return the name of the recovery of a row, after that of its masks where they are not those of Wanda alone."""
    masks = mask(row)
    name = f"`{row['recover']}`" if masks == "Wanda" else f"{masks} + `{row['recover']}`"
    # The default of the training is not that of the fit.
    passes = "" if row["recover"] == "distill" else f", {row['passes']} pass{'es' if row['passes'] > 1 else ''}"
    sequences = 32 * row["data"]
    written = f" and {sequences * row['written']} written" if row["written"] else ""
    return f"{name}{passes}, {sequences} sequences{written}"

"""Ranges of the numbers in the options of pruning."""

from __future__ import annotations

import math

from hf_farms.config.checks import Range, is_count, is_number

__all__ = ["RANGES"]

RANGES = {
    "sparsity": Range(
        lambda value: is_number(value) and 0 <= value < 1,
        "at least 0 and below 1",
        "It is a fraction: 0.5 removes half of the weights.",
    ),
    "spread": Range(
        lambda value: value is None or (is_number(value) and 0 <= value < 1), "None, or at least 0 and below 1"
    ),
    "damping": Range(
        lambda value: is_number(value) and 0 < value < math.inf,
        "a positive number",
        "Use 0.01, or 0.1 for little calibration data.",
    ),
    "block_size": Range(is_count, "a positive integer"),
    "max_sparsity": Range(lambda value: is_number(value) and 0 < value <= 1, "above 0 and at most 1"),
    "recover_passes": Range(lambda value: value is None or is_count(value), "None or a positive integer"),
    "recover_rate": Range(
        lambda value: value is None or (is_number(value) and 0 < value <= 1),
        "None, or above 0 and at most 1",
        "It is a fraction of the size of the weights.",
    ),
    "recover_budget": Range(
        lambda value: value is None or (is_number(value) and 0 < value < 1),
        "None, or above 0 and below 1",
        "It is a fraction: 0.05 trains 5% of the parameters.",
    ),
    "minutes": Range(lambda value: value is None or (is_number(value) and 0 < value < math.inf), "None or above 0"),
}

"""Names of the files that are written and read in more than one place."""

from __future__ import annotations

__all__ = ["HISTORY", "MODEL_CONFIG", "RECIPE", "REPORT", "SELECTED_CHANNELS", "SELECTION", "WEIGHTS", "WEIGHTS_INDEX"]

# Of hf-farms.
REPORT = "hf_farms_report.json"
RECIPE = "recipe.yaml"
# Measurements of FarmsLRCallback, a line each.
HISTORY = "farms_lr.jsonl"
# Of S2FT: its config, and the selected channels of each layer.
SELECTION = "s2ft_config.json"
SELECTED_CHANNELS = "s2ft_adapter.safetensors"
# Of transformers.
MODEL_CONFIG = "config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"

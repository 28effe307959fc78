"""Render reports as model cards and figures. Imports no torch."""

from __future__ import annotations

from hf_farms_cards.card import render_card, write_card

__all__ = ["render_card", "write_card"]

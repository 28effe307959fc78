"""Figures of the cards, drawn with matplotlib."""

"""Figures of cards and of `hf-farms analyze`, drawn with matplotlib."""

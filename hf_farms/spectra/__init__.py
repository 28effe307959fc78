"""Weights to spectra. Imports torch only; knows nothing of transformers."""

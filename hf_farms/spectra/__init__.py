"""Measure weight spectra: windows, eigenvalues, power-law fits. Imports torch, but not transformers."""

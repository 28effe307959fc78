"""Prune models block by block: methods, sparsity patterns, calibration statistics."""

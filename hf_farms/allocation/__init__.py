"""Pure functions on numbers: alphas to sparsities. No torch."""

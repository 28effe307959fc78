"""Adapters of S²FT: the trained slices as a sparse patch of a checkpoint."""

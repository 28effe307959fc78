"""Which weights go, and how they are removed block by block."""

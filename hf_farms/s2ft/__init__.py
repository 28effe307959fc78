"""Selective fine-tuning (S2FT, arXiv 2412.06289): a few heads and channels, trained in place.

selection.py   which units are trained
budgets.py     how many of each block
scores.py      norms of units: weights, activations, gradients
layers.py      linear layers whose backward pass knows the selected channels only
checks.py      what is refused
surgery.py     plain model -> model with such layers -> plain model
files.py       a selection on disk
"""

"""Selective fine-tuning (S2FT, arXiv 2412.06289): train a few heads and channels in place.

coupled.py     a model with its heads and channels, for all of the following
selection.py   choose heads and channels
budgets.py     number of heads and channels of each block
unit_norms.py  norms of heads and channels: weights, activations, gradients
surgery.py     plain model -> model with selective layers -> plain model
channels_by_module.py  the channels of a selection, checked, by the module that trains them
permuting.py   layout "permuted": selected heads and channels first
layers.py      linear layers of which some channels are trained
products.py    their products, with a backward pass for the selected channels only
checks.py      models and layers that are refused
trainable.py   description of the trained part
saving.py      a selection on disk
base_slices.py the trained slices, and those of the base, as a checkpoint stores them
adapters/      the trained slices as a patch of the base model
"""

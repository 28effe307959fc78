"""Distillation: train the kept weights of a pruned model to predict as the dense model does, in a Trainer.

student.py      the blocks on the calibration data, as a Trainer sees them; the loss
training.py     the Trainer, and the checkpoint that it continues from
distilling.py   distill: train, measure, accept or restore; named by the registry of recoveries
"""

"""Metrics. `nll.py` computes, the modules beside it are `evaluate.Metric` classes around it."""

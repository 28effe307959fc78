"""Commands as functions that a notebook can call.

prune.py                prune a model into a folder
prune_plan.py           checks before a prune
baseline.py             the perplexity of uniform sparsity
texts.py                calibration and evaluation texts
push.py                 push a result
card.py                 write a card again
evaluate.py             measure a model, and the dense one
evaluation_results.py   results of an evaluation, in the report and the card
"""

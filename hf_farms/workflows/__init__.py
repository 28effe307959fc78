"""Commands as functions that a notebook can call.

prune.py                prune a model into a folder
prune_stages.py         the stages of a prune, which an interrupted run resumes
prune_result.py         prune into the folder, and keep the better of two results
prune_plan.py           checks before a prune
baseline.py             the perplexity of uniform sparsity
recovered_choice.py     the plan of a search or uniform sparsity, both with the whole recovery
texts.py                calibration and evaluation texts
default_text.py         decide whether the dense model writes calibration text for a recovery
text_lengths.py         refuse texts that are too short, before weights are loaded
adapter_push.py         push an adapter of S²FT
adapter_folders.py      describe, fuse and export adapters
adapter_checkpoints.py  merge an adapter into a checkpoint on disk, take it out, make one of two checkpoints
push.py                 push a result
card.py                 write a card again
evaluate.py             measure a model, and the dense one
evaluation_text.py      text of the perplexity
arguments.py            check the types of arguments that all workflows take
evaluation_results.py   scores of a model, and the report of an evaluation
recorded_results.py     merge of an evaluation into the report of a pruned model
"""

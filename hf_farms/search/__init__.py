"""Search allocations by the KL divergence of pruned models to the dense one.

grid.py         sparsities of blocks as whole levels
levels.py       the masks of all levels of a layer, as one byte per weight
evaluation.py   KL of several plans in one pass over the blocks
sensitivity.py  KL when one block alone is pruned; the allocation `sensitivity`
knapsack.py     the best plan for an additive table
starts.py       plans of all registered allocations
moves.py        changes of a plan that are tried
trials.py       the file of the plans that were tried
budget.py       the time of a search
steps.py        starts, moves, finalists
final_check.py  prune the last plans block by block, recover them, and measure again
tokens.py       batches of a number of tokens
auto.py         the allocations `sensitivity` and `auto`
checking.py     KL after sequential pruning, and rank correlation
recording.py    the record of a search
random_plans.py random search, the baseline of benchmarks
"""

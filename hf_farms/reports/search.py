"""The search of an allocation: what was tried, and what won by how much."""

from __future__ import annotations

from dataclasses import dataclass

from hf_farms.config import SelectionConfig

__all__ = ["SearchRecord", "SearchTrial"]


@dataclass(frozen=True, kw_only=True)
class SearchTrial:
    """One plan, and its KL to the dense model in nats per token on the selection text.

    Attributes:
        name: such as `farms`, `farms, spread 0.2` or `move 12: blocks 3 and 7`.
        sparsities: of each block.
        screened: with the masks of the search, on the first part of the text.
        refined: with the masks of the search, on the rest of the text; None: it was no finalist.
        pruned: after sequential pruning, as the result is pruned, on text of `refined`; None: not measured.
        recovered: after sequential pruning and one pass of the recovery over at most 32 sequences, on the same text;
            None: not measured.
    """

    name: str
    sparsities: tuple[float, ...]
    screened: float
    refined: float | None = None
    pruned: float | None = None
    recovered: float | None = None


@dataclass(frozen=True, kw_only=True)
class SearchRecord:
    """The plans that a search tried.

    Attributes:
        winner: name of the best plan.
        taken: `uniform`, where the result has that in place of the best plan, as it was better after the whole
            recovery; None: the result has the best plan.
        sparsities: of each block with the best plan, exact in total.
        trials: all plans, the best first.
        table_sparsities: sparsities at which each block was pruned alone.
        table: KL of each block at each of them.
        screen_tokens: tokens of the selection text behind `screened`.
        refine_tokens: tokens behind `refined`; 0: nothing was refined.
        rank_correlation: between `refined` and `recovered`, or `pruned`, over the plans that have both; None for fewer
            than three.
        complete: whether all planned work was done; False: the time was over.
        selection: the selection text; None: batches of the caller.
        notes: what a reader must know.
    """

    winner: str
    sparsities: tuple[float, ...]
    trials: tuple[SearchTrial, ...] = ()
    table_sparsities: tuple[float, ...] = ()
    table: tuple[tuple[float, ...], ...] = ()
    screen_tokens: int = 0
    refine_tokens: int = 0
    rank_correlation: float | None = None
    complete: bool = True
    selection: SelectionConfig | None = None
    notes: tuple[str, ...] = ()
    taken: str | None = None

    def trial(self, name: str) -> SearchTrial | None:
        """Return the trial of this name; None: there is none."""
        return next((trial for trial in self.trials if trial.name == name), None)

    @property
    def sentence(self) -> str:
        """The plan that won, and by how much, on the text of the latest stage."""
        best, uniform = self.best, self.trial("uniform")
        replaced = ""
        if self.taken is not None:
            replaced = f" The result has {self.taken} sparsity instead: see the notes."
        if best is None or uniform is None:
            return f"Plan: {self.winner}.{replaced}"
        stages = (
            (best.recovered, uniform.recovered, "after pruning and one pass of recovery"),
            (best.pruned, uniform.pruned, "after pruning"),
            (best.refined, uniform.refined, f"on {self.refine_tokens:,} tokens"),
            (best.screened, uniform.screened, f"on {self.screen_tokens:,} tokens"),
        )
        this, other, where = next(s for s in stages if s[0] is not None and s[1] is not None)
        plans = "1 plan" if len(self.trials) == 1 else f"{len(self.trials)} plans"
        text = (
            f"Best of {plans}: {self.winner}, KL to the dense model {this:.4g} nats per token {where} "
            f"({other:.4g} with uniform sparsity)."
        )
        if self.rank_correlation is not None:
            recovered = sum(trial.recovered is not None for trial in self.trials)
            compared = recovered or sum(trial.pruned is not None for trial in self.trials)
            check = "sequential pruning and recovery" if recovered else "sequential pruning"
            text += f" Rank correlation of the search with {check} over {compared} plans: {self.rank_correlation:.2f}."
        return text + replaced

    @property
    def best(self) -> SearchTrial | None:
        """The trial that won."""
        return self.trial(self.winner)

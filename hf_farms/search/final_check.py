"""The last step of a search: prune the best plans block by block, recover them, and measure them again."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

from hf_farms.metrics.divergence import Batches
from hf_farms.pruning.costs import pruning_passes, recovery_passes
from hf_farms.pruning.recovery import single_sequences
from hf_farms.search.checking import CHECK_PASSES, CHECK_SEQUENCES, can_check, pruned_loss
from hf_farms.search.starts import Candidate, between
from hf_farms.search.tokens import evenly, spaced, token_count
from hf_farms.search.trials import Stage, Trial

if TYPE_CHECKING:
    from hf_farms.search.steps import Search

__all__ = ["FinalCheck", "check_seconds"]

# Plans that are pruned, uniform among them; with a recovery there is one more.
CHECKED = 3
CHECK_TOKENS = 8192
# Losses that a plan has before it is pruned.
EARLIER: tuple[Stage, ...] = ("screened", "refined")


def check_seconds(search: Search) -> float:
    """Return about how long a plan takes to be pruned, recovered and measured, by the time of those screened so far."""
    data, passes = cast(Batches, search.calibration), pruning_passes(search.config)
    if search.config.recovers:
        data = evenly(single_sequences(data), CHECK_SEQUENCES)
        passes += recovery_passes(CHECK_PASSES)
    tokens = passes * token_count(data) + 2 * token_count(spaced(search.refine, CHECK_TOKENS))
    return tokens / token_count(search.screen) * search.budget.seconds_per_plan


class FinalCheck:
    """Prune the best finalist, uniform and the second finalist block by block, and measure them again.

    A recovery evens out much of what an allocation gains, so that milder plans may be better. With one, plans are also
    recovered, in one pass, and those between the best finalist and uniform take the place of the second finalist: the
    one halfway, then the one between the best of these three and its better neighbor.

    Args:
        search: its trials get the losses.
        finalists: the best first.
    """

    def __init__(self, search: Search, finalists: Sequence[Trial]) -> None:
        self._search, self._finalists = search, finalists
        self._recovers = search.config.recovers
        # Of a check; from the first one on it is known.
        self._seconds = check_seconds(search)
        self._stage: Stage = "recovered" if self._recovers else "pruned"

    def run(self) -> None:
        """Prune the plans while there is time."""
        search = self._search
        if not can_check(search.source):
            missing = "pruned block by block or recovered" if self._recovers else "pruned block by block"
            search.notes.append(f"Plans were not {missing} before the choice, as the model is not in memory.")
            return
        first = self._first()
        halves = self._recovers and between(*first[0], search.grid, share=0.5) in first[2:]
        done = self._prune_all(first, 0, len(first) + halves)
        if halves and done == len(first):
            last = self._last(first)
            done = self._prune_all(last, done, done + len(last))
        if self._recovers and done:
            were = "was" if done == 1 else "were"
            search.notes.append(
                f"{done} of the plans {were} also pruned block by block and recovered, in one pass over at most "
                f"{CHECK_SEQUENCES} sequences."
            )

    def _prune_all(self, candidates: Sequence[Candidate], done: int, total: int) -> int:
        """Prune plans while there is time; return how many are done, those before included."""
        search = self._search
        for candidate in candidates:
            known = search.trials.has(candidate[1], self._stage)
            if not known and not search.budget.has(self._seconds):
                search.is_cut = True
                search.notes.append(
                    "The time limit (`minutes`) ended the search before all finalists were pruned block by block."
                )
                return done
            before = search.budget.used()
            self._prune(candidate)
            if not known:
                self._seconds = search.budget.used() - before
            done += 1
            search.show(self._stage, done, total)
        if not candidates:
            # The bar ends where one more plan was expected.
            search.show(self._stage, done, total)
        return done

    def _first(self) -> list[Candidate]:
        """Return the plans that are pruned in any case, the best finalist first."""
        uniform = self._search.trials[self._search.grid.uniform]
        trials = [*self._finalists[:1], uniform, *self._finalists[1:2]]
        candidates = [(trial.name, trial.plan) for trial in trials]
        if self._recovers:
            candidates.insert(2, between(*candidates[0], self._search.grid, share=0.5))
        distinct = {plan: (name, plan) for name, plan in reversed(candidates)}
        return [distinct[plan] for plan in dict.fromkeys(plan for _, plan in candidates)][:CHECKED]

    def _last(self, first: Sequence[Candidate]) -> list[Candidate]:
        """Return the plan between the best of three and its better neighbor, if the levels have one."""
        losses = [self._search.trials[plan].losses[self._stage] for _, plan in first]
        # The whole plan, uniform and the one halfway: the first two have only the last one beside them.
        shares = [1.0, 0.0, 0.5]
        ranked = [share for _, share in sorted(zip(losses, shares, strict=True))]
        neighbor = ranked[1] if ranked[0] == 0.5 else 0.5
        candidate = between(*first[0], self._search.grid, share=(ranked[0] + neighbor) / 2)
        return [candidate] if candidate[1] not in [plan for _, plan in first] else []

    def _prune(self, candidate: Candidate) -> None:
        """Prune a plan block by block, and measure it; a new one is screened and refined first."""
        search = self._search
        for earlier in EARLIER:
            search.trials.measure([candidate], earlier, search.losses(earlier))
        prune = partial(
            pruned_loss,
            search.source,
            search.config,
            calibration=search.calibration,
            batches=spaced(search.refine, CHECK_TOKENS),
        )
        exact = search.grid.exact(search.grid.sparsities(candidate[1]))
        search.trials.measure([candidate], self._stage, lambda plans: [prune(exact) for _ in plans])

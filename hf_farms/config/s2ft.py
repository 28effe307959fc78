"""Options of selective fine-tuning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from hf_farms.config.checks import check, check_choice, check_fields, is_count, is_number, is_seed
from hf_farms.config.renamed import renamed
from hf_farms.config.spectra import FarmsConfig
from hf_farms.registries import STRATEGIES

__all__ = [
    "S2FT_KEEPS",
    "S2FT_LAYOUTS",
    "S2FT_ROLES",
    "S2FTConfig",
    "S2FTKeep",
    "S2FTLayout",
    "S2FTRole",
    "S2FTStrategy",
]

S2FTRole = Literal["q", "k", "v", "o", "gate", "up", "down"]
# A name, as it is registered when a config is made.
S2FTStrategy = Annotated[str, STRATEGIES]
S2FTKeep = Literal["largest", "smallest"]
S2FTLayout = Literal["indexed", "permuted"]
S2FTBudgets = Literal["uniform", "farms"]

S2FT_ROLES: tuple[S2FTRole, ...] = get_args(S2FTRole)
S2FT_KEEPS: tuple[S2FTKeep, ...] = get_args(S2FTKeep)
S2FT_LAYOUTS: tuple[S2FTLayout, ...] = get_args(S2FTLayout)
S2FT_BUDGETS: tuple[S2FTBudgets, ...] = get_args(S2FTBudgets)


@renamed(farms="spectra")
@dataclass(frozen=True, kw_only=True)
class S2FTConfig:
    """Options of selective fine-tuning of heads and channels (S2FT, arXiv 2412.06289).

    Attributes:
        budget: trained fraction of the model's parameters, in (0, 1). It is divided over blocks and, in a block,
            equally between attention and feed-forward network; what whole heads leave over goes to the latter. Memory
            for gradients and optimizer grows with it.
        roles: layers that are trained: "o", "v", "q", "k" of the selected heads, "down", "up", "gate" of the selected
            feed-forward channels. The default follows the paper; more roles mean fewer heads and channels for the same
            budget.
        strategy: how heads and channels are selected. "random" needs no data and is the paper's choice; "weight" takes
            their norm; "activation", "product" (of both) and "gradient" need calibration data and passes over it.
        keep: train the units of the "smallest" or of the "largest" norm. "random" ignores it.
        seed: of the strategy "random". Change it to see how much the choice matters.
        budget_allocation: give every block the same share ("uniform"), or badly trained blocks with a larger alpha more
            ("farms"), which costs an `analyze` of the model.
        spread: how far the budgets of blocks may lie apart, within (1 - spread) / (1 + spread) of each other. Only
            "farms" reads it.
        spectra: how spectra are measured for the allocation "farms". Change it for another window size or fit; see
            `FarmsConfig`.
        layout: "indexed" leaves selected channels where they are. "permuted" moves heads and channels together, as in
            the paper; it gained no time on a CPU, and copies every moved weight in a state dict. Checkpoints always
            have the original order.
        write_back: write the trained slice into the weight after every step. Set False for weights that something else
            reads and that must not change while training, and for optimizers that evaluate the loss inside a step
            (LBFGS); it costs a second product, with more time and memory.
        max_channels: largest number of trained channels of one weight, in whole heads; q, k and v inside one weight
            count together. None: no limit. It is the rank of a LoRA export: set 256 for servers whose ranks end there,
            or 258 channels take a rank of 320. If it leaves a part of the budget unused, a warning says so.
    """

    budget: float = 0.01
    roles: tuple[S2FTRole, ...] = ("o", "down")
    strategy: S2FTStrategy = "random"
    keep: S2FTKeep = "smallest"
    seed: int = 0
    budget_allocation: S2FTBudgets = "uniform"
    spread: float = 0.1
    spectra: FarmsConfig = field(default_factory=FarmsConfig)
    layout: S2FTLayout = "indexed"
    write_back: bool = True
    max_channels: int | None = None

    def __post_init__(self) -> None:
        check(
            is_number(self.budget) and 0 < self.budget < 1,
            "budget",
            "above 0 and below 1",
            self.budget,
            "It is a fraction: 0.01 trains 1% of the parameters.",
        )
        several = isinstance(self.roles, Iterable) and not isinstance(self.roles, str | Mapping)
        roles = tuple(self.roles) if several else ()
        check(bool(roles), "roles", f"a tuple with some of {', '.join(S2FT_ROLES)}", self.roles)
        object.__setattr__(self, "roles", roles)
        for role in self.roles:
            check_choice("roles", role, S2FT_ROLES)
        check(len(set(self.roles)) == len(self.roles), "roles", "different from each other", self.roles)
        check_choice("strategy", self.strategy, STRATEGIES)
        check_choice("keep", self.keep, S2FT_KEEPS)
        check(is_seed(self.seed), "seed", "an integer of at least 0", self.seed)
        check_choice("budget_allocation", self.budget_allocation, S2FT_BUDGETS)
        check(is_number(self.spread) and 0 <= self.spread < 1, "spread", "at least 0 and below 1", self.spread)
        check_choice("layout", self.layout, S2FT_LAYOUTS)
        none_or_count = self.max_channels is None or is_count(self.max_channels)
        check(none_or_count, "max_channels", "None or a positive integer", self.max_channels)
        check_fields(self)

    @property
    def needs_data(self) -> bool:
        """Whether the strategy reads calibration batches."""
        return STRATEGIES[self.strategy].needs_data

"""Options that only the command line has and whose effect depends on others: rules as those of the library."""

from __future__ import annotations

from dataclasses import dataclass

from hf_farms.config.effect_rules import Rule
from hf_farms.config.effects import warn_unused
from hf_farms_cli.options import Format

__all__ = ["RULES", "AnalyzeOptions", "CardOptions", "warn_unused_options"]


@dataclass(frozen=True, kw_only=True)
class AnalyzeOptions:
    """Options of `hf-farms analyze` that the library does not have."""

    layers: bool = False
    shown: Format = "human"


@dataclass(frozen=True, kw_only=True)
class CardOptions:
    """Options of `hf-farms card`."""

    yes: bool = False
    output: str | None = None


RULES = (
    Rule(
        kind=AnalyzeOptions,
        fields=("layers",),
        applies=lambda options, _: options.shown in ("human", "agent"),
        condition=lambda _: "it applies to tables, not to --json and --quiet.",
    ),
    Rule(
        kind=CardOptions,
        fields=("yes",),
        applies=lambda options, _: options.output != "-",
        condition=lambda _: "it applies to a card that is written into a file.",
    ),
)


def warn_unused_options(options: AnalyzeOptions | CardOptions) -> None:
    """Warn of options that stand on the command line and have no effect."""
    warn_unused(options, rules=RULES)

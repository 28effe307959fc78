"""Roles of layers."""

from __future__ import annotations

__all__ = ["ROUTER", "counts"]

# Chooses the experts that a token is sent to, or the tokens that are attended to.
ROUTER = "router"


def counts(role: str) -> bool:
    """Whether a layer of this role counts in the score, the sparsity and the learning rate of its block.

    Routers do not: they have few weights, and a change of them decides which expert every token goes to.
    """
    return role != ROUTER

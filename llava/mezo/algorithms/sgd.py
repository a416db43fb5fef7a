"""Plain descent along the estimate (Malladi et al. 2023, Algorithm 1): factor = projected_grad / n."""

from __future__ import annotations

from collections.abc import Sequence

from llava.mezo.algorithms.interface import Move, Rule, Term


class SGD(Rule):
    """See `Rule`; remembers nothing."""

    def moves(self, memory: None, terms: Sequence[Term]) -> tuple[None, tuple[Move, ...]]:
        return None, tuple(Move(term.seed, term.projected_grad / len(terms)) for term in terms)

"""A closed set of answers as a tree of tokens: the cross entropy among them, and what may come next when one is given.

Malladi et al. 2023 train this way wherever answers come from a list (`train_as_classification` of their code): what
counts is how likely the right answer is among them, not that the model knows what it is asked for. They compare whole
answers, a forward each; likely here is what a decoding gives that takes only tokens that lead to an answer, so one
forward does for answers of any length. For answers of one token it is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch.nn import functional

from llava.mezo.errors import InputError
from llava.mezo.head import IGNORED


class AnswerTree:
    """The answers of a list.

    Args:
        answers: token ids, each with those that end it, so that none is the beginning of another.

    Raises:
        InputError: one is.
    """

    def __init__(self, answers: Iterable[Sequence[int]]) -> None:
        self._children: list[dict[int, int]] = [{}]
        """Of each node, the node behind a token; the root is the first."""
        self.longest = 0
        ends = set()
        for answer in answers:
            node = 0
            for token in answer:
                if token not in self._children[node]:
                    self._children[node][token] = len(self._children)
                    self._children.append({})
                node = self._children[node][token]
            ends.add(node)
            self.longest = max(self.longest, len(answer))
        if any(self._children[node] for node in ends):
            raise InputError("an answer is the beginning of another: the conversation template does not end them")
        tokens = sorted({token for children in self._children for token in children})
        self._columns = {token: column for column, token in enumerate(tokens)}
        self._tokens = torch.tensor(tokens)
        self._allowed = torch.zeros(len(self._children), len(tokens), dtype=torch.bool)
        for node, children in enumerate(self._children):
            self._allowed[node, [self._columns[token] for token in children]] = True

    def to(self, device: torch.device | str) -> AnswerTree:
        """This tree, with what `loss` reads on a device."""
        self._tokens, self._allowed = self._tokens.to(device), self._allowed.to(device)
        return self

    def next(self, given: Iterable[int]) -> list[int]:
        """The tokens that may follow these, which begin an answer; none behind a whole one, or what is none."""
        node: int | None = 0
        for token in given:
            node = None if node is None else self._children[node].get(token)
        return [] if node is None else list(self._children[node])

    def places(self, targets: torch.Tensor) -> torch.Tensor:
        """Supervised tokens [n] on a CPU, of whole answers one after the other, as `loss` takes them.

        Raises:
            InputError: they are not.
        """
        places, node = [], 0
        for token in targets.tolist():
            if token == IGNORED:
                places.append(IGNORED)
                continue
            if token not in self._children[node]:
                raise InputError(
                    "a batch has supervised tokens that are none of the answers: --model_max_length cuts one off, or "
                    "more than the answers is supervised"
                )
            places.append(node * len(self._tokens) + self._columns[token])
            following = self._children[node][token]
            node = following if self._children[following] else 0
        return torch.tensor(places, dtype=targets.dtype)

    def loss(self, states: torch.Tensor, head: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Mean over the answers of -log of the right one's probability among all, in nats; float32, of one element.

        Args:
            states: hidden states [n, D] before supervised tokens.
            head: weights of the output head [V, D]; only rows of tokens that answers have are read.
            places: [n], as `places` gives them; `IGNORED` ones do not count.

        All of these on the device that the tree was brought to.
        """
        counts, known = places != IGNORED, places.clamp(min=0)
        node, column = known // len(self._tokens), known % len(self._tokens)
        rows = functional.embedding(self._tokens, head)
        with torch.autocast(states.device.type, enabled=False):  # 16-bit logits would round the loss
            logits = functional.linear(states.float(), rows.float())
        logits = logits.where(self._allowed.index_select(0, node), -torch.inf)
        losses = logits.logsumexp(dim=1) - logits.gather(1, column[:, None]).squeeze(1)
        return losses.where(counts, 0.0).sum() / (counts & (node == 0)).sum()

    def loss_of_tokens(self, states: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The same of the supervised tokens themselves, for which it waits."""
        return self.loss(states, head, self.places(targets.cpu()).to(targets.device))

"""The loss of a language model with gradients, a chunk of the vocabulary at a time: no logits of it all are ever there.

The counterpart of `llava.mezo.head`, which has no graph. A backward pass over logits holds them several times, in 16
and 32 bits: of 1,300 tokens and a vocabulary of 152,000 that is more than all else of a step of LoRA. Here the backward
pass makes each chunk's logits again, from the log-sum-exp of all of them (Wijmans et al. 2024, "Cut Your Losses in
Large-Vocabulary Language Models", without their filter); weights are read once more, and in chunks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from llava.mezo.head import chunk_rows, log_likelihood


def has_plain_head(head: nn.Module) -> bool:
    """Whether logits are hidden states times the weights of `head`, and these are there whenever they are asked for.

    A head that is adapted, quantised or has hooks does something else; DeepSpeed's ZeRO-3 and FSDP keep weights in
    pieces, which are put together for the head's own forward alone; compiled models are left to their compiler.
    """
    if type(head) is not nn.Linear or head.bias is not None or torch.compiler.is_compiling():
        return False
    whole = type(head.weight) is nn.Parameter and not hasattr(head.weight, "ds_id")
    return whole and not (head._forward_hooks or head._forward_pre_hooks or "forward" in head.__dict__)


def mean_cross_entropy(states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy, float32, of `states` [n, D] times `weight` [V, D] against `targets` [n], all of them words.

    Products are in the dtype of autocast where that is on, else in that of the weights. NaN for n = 0, as in torch.
    """
    device = states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    total: torch.Tensor = _CrossEntropy.apply(states, weight, targets, dtype)
    return total / len(targets) if len(targets) else total * float("nan")


class _CrossEntropy(torch.autograd.Function):
    """Sum over the rows."""

    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        normaliser, chosen = log_likelihood(states, weight, targets)
        ctx.save_for_backward(states, weight, targets, normaliser)
        ctx.dtype = dtype
        return (normaliser - chosen).sum()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """softmax - one-hot, times what comes from behind: rounded once, as where logits were cast to float32."""
        states, weight, targets, normaliser = ctx.saved_tensors
        if torch.is_grad_enabled():  # which asks for a graph of the gradient, as for products with the Hessian
            return (*_differentiable(ctx, states, weight, targets, gradient), None, None)
        of_states = torch.zeros(states.shape, device=states.device) if ctx.needs_input_grad[0] else None
        of_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        rows, given = chunk_rows(weight, len(states)), states.to(ctx.dtype)
        for first in range(0, len(weight), rows):
            words = weight[first : first + rows].to(ctx.dtype)
            of_logits = functional.linear(given, words).float().sub_(normaliser[:, None]).exp_()
            place = targets - first
            inside = ((place >= 0) & (place < len(words))).to(of_logits.dtype)
            of_logits.scatter_add_(1, place.clamp(0, len(words) - 1)[:, None], -inside[:, None])
            rounded = of_logits.mul_(gradient).to(ctx.dtype)
            if of_states is not None:
                of_states += rounded @ words
            if of_weight is not None:
                of_weight[first : first + rows] = rounded.t() @ given
        return None if of_states is None else of_states.to(states.dtype), of_weight, None, None


def _differentiable(
    ctx: Any, states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, gradient: torch.Tensor
) -> list[torch.Tensor | None]:
    """The gradients of states and weights with a graph of their own, over logits as a whole."""
    logits = functional.linear(states.to(ctx.dtype), weight.to(ctx.dtype)).float()
    total = functional.cross_entropy(logits, targets, reduction="sum")
    wanted = [tensor for tensor, needed in zip((states, weight), ctx.needs_input_grad, strict=False) if needed]
    found = iter(torch.autograd.grad(total, wanted, gradient, create_graph=True))
    return [next(found) if needed else None for needed in ctx.needs_input_grad[:2]]

"""Float32 masters of weights that are trained in 16 bits, for any optimizer.

At a rate of 1e-6 nearly all updates are smaller than half a step of bfloat16, so that rounded weights stay where they
are. The optimizer sees masters in float32; after each of its steps the model's weights are the masters, rounded.
Micikevicius et al. 2018, "Mixed Precision Training", section 3.1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from llava.errors import InputError
from llava.train.parts.param_groups import Groups

SIXTEEN_BITS = (torch.bfloat16, torch.float16)


class MasterWeights:
    """Masters of all trained 16-bit parameters of a model, by name; other parameters are left to the optimizer."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad and p.dtype in SIXTEEN_BITS}
        self._masters = {name: nn.Parameter(p.detach().float()) for name, p in self._parameters.items()}

    def __len__(self) -> int:
        return len(self._masters)

    def replace(self, groups: Groups) -> Groups:
        """Parameter groups for an optimizer, masters in place of the parameters that have one."""
        of = {id(p): self._masters[name] for name, p in self._parameters.items()}
        return [{**group, "params": [of.get(id(p), p) for p in group["params"]]} for group in groups]

    def of(self, parameter: nn.Parameter) -> nn.Parameter:
        """The master of a parameter; itself, if it has none."""
        return next((self._masters[name] for name, p in self._parameters.items() if p is parameter), parameter)

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """From now on a step of `optimizer` begins with the model's gradients and ends with the model's weights."""
        optimizer.register_step_pre_hook(lambda *_: self.take_gradients())
        optimizer.register_step_post_hook(lambda *_: self.give_weights())

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The masters, by the names of their parameters."""
        return {name: master.detach() for name, master in self._masters.items()}

    def load_state_dict(self, state: dict[str, torch.Tensor] | None, where: Any) -> None:
        """Put back what `state_dict` gave, the model's weights with it.

        Args:
            where: the checkpoint, for the error.

        Raises:
            InputError: the masters are of other parameters, or there are none.
        """
        if state is None or state.keys() != self._masters.keys():
            raise InputError(
                f"{where} has no float32 masters of the weights that this run trains in 16 bits: a run cannot go on "
                "from it as it would have. Start a new one from its weights (--model_name_or_path)"
            )
        with torch.no_grad():
            for name, master in self._masters.items():
                master.copy_(state[name])
        self.give_weights()

    def take_gradients(self) -> None:
        """Gradients of the masters are those of the parameters, which keep none."""
        for name, parameter in self._parameters.items():
            if parameter.grad is not None:
                self._masters[name].grad = parameter.grad.float()
                parameter.grad = None  # one copy of a gradient at a time

    def give_weights(self) -> None:
        """Parameters are the masters, rounded."""
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(self._masters[name])
                self._masters[name].grad = None

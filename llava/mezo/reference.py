"""MeZO on one page: Algorithm 1 of Malladi et al. 2023 in plain code, to be read and to test everything else against.

It makes full copies of the weights and is slow. `optimizer.MeZO` must give the same losses and weights, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch

from llava.mezo.config import MeZOConfig
from llava.mezo.kernels.numpy_reference import ROUND
from llava.mezo.noise import STREAM_ROUNDING, direction_seed, direction_values, random_bits

Weights = dict[str, torch.Tensor]


def mezo_step(
    weights: Mapping[str, torch.Tensor],
    loss: Callable[[Weights], float],
    step: int,
    config: MeZOConfig,
    lr: float,
    weight_decay: Mapping[str, float],
) -> tuple[Weights, list[float]]:
    """One step; gives the new weights (the old ones are left alone) and the projected gradients.

    `weights` are CPU tensors by name (float32, bfloat16 or float16), `loss` takes such a dictionary, `weight_decay`
    has an entry for every name that decays.
    """
    seeds = [direction_seed(config.seed, step, direction) for direction in range(config.num_directions)]
    projected_grads = []
    for seed in seeds:
        loss_plus = loss(perturbed(weights, seed, config.eps, config.noise))
        loss_minus = loss(perturbed(weights, seed, -config.eps, config.noise))
        projected_grads.append((loss_plus - loss_minus) / (2 * config.eps))

    updated = {}
    for number, name in enumerate(sorted(weights)):
        weight = weights[name]
        u = weight.to(torch.float32).numpy().reshape(-1).copy()
        u = u * np.float32(1 - lr * weight_decay.get(name, 0.0))
        for seed, projected_grad in zip(seeds, projected_grads, strict=True):
            z = direction_values(seed, number, 0, u.size, config.noise)
            u = u + np.float32(-lr * projected_grad / config.num_directions) * z
        updated[name] = stored(u, seeds[0], number, weight.dtype).reshape(weight.shape)
    return updated, projected_grads


def perturbed(weights: Mapping[str, torch.Tensor], seed: int, scale: float, noise: str) -> Weights:
    """weight + scale * z for all weights, each rounded to its dtype."""
    result = {}
    for number, name in enumerate(sorted(weights)):
        weight = weights[name]
        z = torch.from_numpy(direction_values(seed, number, 0, weight.numel(), noise)).reshape(weight.shape)
        result[name] = (weight.to(torch.float32) + np.float32(scale) * z).to(weight.dtype)
    return result


def stored(u: npt.NDArray[np.float32], seed: int, number: int, dtype: torch.dtype) -> torch.Tensor:
    """float32 values in the weights' dtype; 16-bit ones by stochastic rounding."""
    if dtype == torch.float32:
        return torch.from_numpy(u)
    bits = ROUND[dtype](u, random_bits(seed, number, STREAM_ROUNDING, 0, u.size))
    return torch.from_numpy(bits.view(np.int16)).view(dtype)

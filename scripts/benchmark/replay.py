"""What a replayed step costs, against one pass of the noise kernel over the weights.

    python scripts/benchmark/replay.py [--storage native] [--steps 50] [--json replay.json]    (a minute on two cores)

The weights are those of a language model's layers: matrices of 0.1 to 4.4 million elements and vectors.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from measuring import add_json
from torch import nn

from llava.mezo.config import STORAGES
from llava.mezo.trained import TrainedWeights
from llava.mezo.updates import Update
from llava.mezo.weights import store

LAYER = ((4864, 896), (4864, 896), (896, 4864), (896, 896), (896, 896), (128, 896), (128, 896), (896,), (896,))


def seconds(function: Callable[[], object]) -> float:
    """Of one call."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def main() -> None:
    """Print seconds and their ratio, medians of five in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", choices=STORAGES, default="native")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add_json(parser)
    options = parser.parse_args()
    shapes = LAYER * options.layers
    weights = [nn.Parameter(torch.randn(s, device=options.device).mul_(0.02).bfloat16()) for s in shapes]
    storages = [store(w, options.storage) for w in weights]
    trained = TrainedWeights(storages, "gaussian", "auto")
    updates = [Update((seed,), ((1e-9,),), (1.0,)) for seed in range(options.steps)]

    def noise() -> None:
        for number in range(len(storages)):
            trained.perturbed((number,), (0,))
        if options.device == "cuda":
            torch.cuda.synchronize()

    def replay() -> None:
        trained.update(updates)
        if options.device == "cuda":
            torch.cuda.synchronize()

    runs = [(seconds(noise), seconds(replay) / options.steps) for _ in range(6)][1:]
    one, step = (statistics.median(values) for values in zip(*runs, strict=True))
    elements = sum(w.numel() for w in weights)
    print(f"{elements / 1e6:.0f}M weights, storage {options.storage}, {options.steps} steps in one pass")
    print(f"noise pass {one:.4f} s, replayed step {step:.4f} s, ratio {step / one:.2f}")
    if options.json:
        report = {"weights": elements, "storage": options.storage, "noise": one, "step": step}
        options.json.write_text(json.dumps(report) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

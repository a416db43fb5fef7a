"""How many directions it takes until they no longer limit a step: the effective rank of the loss, by backpropagation.

    python scripts/study/effective_rank.py --records 32 -- FLAGS_OF_A_RUN            (5 minutes with the tiny model)

FLAGS are those of train.py, in regular mode and without output. In float64, with H the Hessian of the mean loss of the
records and g_B the gradients of its batches, it prints as JSON

    trace       tr(H), by Hutchinson's estimator (1990) with its standard error: mean of z'Hz over signs z
    frobenius   |H|, by the mean of |Hz|^2: where H has negative curvature too, its trace is less than that of its size
    curvature   g_B'H g_B / |g_B|^2, mean over batches
    rank        trace / curvature: r of `useful_directions.py`
    share       |g|^2 over the mean of |g_B|^2, without bias: what of a batch's gradient is the records' own

where Malladi et al. (2023, assumption 1) have tr(H) <= r |H|, with the largest curvature in place of the gradient's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from typing import Any

import torch

from llava.errors import InputError, command
from llava.train.flags.parsing import parse_arguments
from llava.train.train import build, make_trainer

STEP = 1e-5  # of differences of gradients, times a vector of signs


class Gradients:
    """Gradients of a run's loss, of the mean over its first batches or of single ones, as one vector in float64."""

    def __init__(self, flags: Sequence[str], records: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            model_args, data_args, training_args = parse_arguments([*flags, "--output_dir", folder])
            model, tokenizer = build(model_args, data_args, training_args)
            trainer = make_trainer(model, tokenizer, model_args, data_args, training_args)
        size, dataset = training_args.per_device_train_batch_size, trainer.train_dataset
        if not 2 * size <= records <= len(dataset):
            raise InputError(
                f"--records {records}: from two batches ({2 * size}) to all that there are ({len(dataset)})"
            )
        model.double().eval()
        self.model, self.weights = model, [p for p in model.parameters() if p.requires_grad]
        chunks = [range(first, first + size) for first in range(0, records - size + 1, size)]
        self.batches = [self._double(trainer.data_collator([dataset[k] for k in chunk])) for chunk in chunks]

    @staticmethod
    def _double(batch: dict[str, Any]) -> dict[str, Any]:
        batch = dict(batch)
        batch["images"] = [image.double() for image in batch["images"]]
        return batch

    def of(self, batch: dict[str, Any]) -> torch.Tensor:
        """Of one batch, [weights]."""
        with torch.enable_grad():
            loss = self.model(**batch).loss
            return torch.cat([one.flatten() for one in torch.autograd.grad(loss, self.weights)])

    def mean(self) -> torch.Tensor:
        """Of all batches, [weights]."""
        return sum(self.of(batch) for batch in self.batches) / len(self.batches)  # type: ignore[return-value]

    def curved(self, vector: torch.Tensor) -> torch.Tensor:
        """H times a vector, [weights], by a difference of gradients."""
        scale = STEP * len(vector) ** 0.5 / vector.norm()
        ends = []
        for sign in (1, -1):
            self._move(sign * scale * vector)
            ends.append(self.mean())
            self._move(-sign * scale * vector)
        return (ends[0] - ends[1]) / (2 * scale)

    @torch.no_grad()
    def _move(self, change: torch.Tensor) -> None:
        for weight, part in zip(self.weights, change.split([w.numel() for w in self.weights]), strict=True):
            weight += part.view_as(weight)


def measured(gradients: Gradients, probes: int, seed: int = 0) -> dict[str, float]:
    """What the module's docstring lists."""
    own = [gradients.of(batch) for batch in gradients.batches]
    count, total = len(own), sum(own)
    squares = statistics.mean(float(one @ one) for one in own)
    signal = (float(total @ total) - count * squares) / (count * (count - 1))  # type: ignore[operator]
    curvature = statistics.mean(float(one @ gradients.curved(one) / (one @ one)) for one in own[:probes])
    generator = torch.Generator().manual_seed(seed)
    traces, norms = [], []
    for _ in range(probes):
        z = torch.randint(0, 2, own[0].shape, generator=generator).double() * 2 - 1
        curved = gradients.curved(z)
        traces.append(float(z @ curved))
        norms.append(float(curved @ curved))
    trace, error = statistics.mean(traces), statistics.stdev(traces) / probes**0.5
    found = {"weights": len(own[0]), "batches": count, "trace": trace, "trace_error": error, "curvature": curvature}
    found["frobenius"] = statistics.mean(norms) ** 0.5
    return found | {"rank": trace / curvature, "share": signal / squares}


@command
def main(argv: list[str] | None = None) -> None:
    """Entry point, see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=32, help="that the loss is of, default: %(default)s")
    parser.add_argument("--probes", type=int, default=8, help="vectors of signs, and batches: default %(default)s")
    parser.add_argument("flags", nargs="+", help="after --: those of train.py")
    options = parser.parse_args(argv)
    if options.probes < 2:
        raise InputError(f"--probes {options.probes}: at least 2, for an error of the trace")
    print(json.dumps(measured(Gradients(options.flags, options.records), options.probes)))


if __name__ == "__main__":
    main()

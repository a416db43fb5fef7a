"""How many directions it takes until they no longer limit a step: the effective rank of the loss, by backpropagation.

    python scripts/study/effective_rank.py --records 32 -- FLAGS_OF_A_RUN            (5 minutes with the tiny model)

FLAGS are those of train.py, in regular mode and without output. With H the Hessian of the mean loss of the records and
g_B the gradients of its batches, it prints as JSON

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

from settings import counting

from llava.errors import InputError, command
from llava.train.flags.parsing import parse_arguments
from llava.train.hessian import Hessian
from llava.train.train import trainer_of


def several(text: str) -> int:
    """A number of probes that gives an error of their mean, for argparse."""
    return counting(text, least=2)


def hessian_of(flags: Sequence[str], records: int) -> Hessian:
    """Of a run's loss on its first records, in its batches.

    Raises:
        InputError: fewer records than two batches, or more than there are.
    """
    with tempfile.TemporaryDirectory() as folder:
        model_args, data_args, training_args = parse_arguments([*flags, "--output_dir", folder])
        trainer = trainer_of(model_args, data_args, None, training_args)
    size, dataset = training_args.per_device_train_batch_size, trainer.train_dataset
    if not 2 * size <= records <= len(dataset):
        raise InputError(f"--records {records}: from two batches ({2 * size}) to all that there are ({len(dataset)})")
    chunks = [range(first, first + size) for first in range(0, records - size + 1, size)]
    return Hessian.of_run(trainer, [trainer.data_collator([dataset[k] for k in chunk]) for chunk in chunks])


def hutchinson(hessian: Hessian, probes: int) -> dict[str, float]:
    """Trace with its standard error, and Frobenius' norm, from so many vectors of signs."""
    traces, norms = [], []
    for probe in range(probes):
        z = hessian.random(probe).sign()
        curved = hessian.times(z)
        traces.append(float(z @ curved))
        norms.append(float(curved @ curved))
    error = statistics.stdev(traces) / probes**0.5
    return {"trace": statistics.mean(traces), "trace_error": error, "frobenius": statistics.mean(norms) ** 0.5}


def measured(hessian: Hessian, probes: int) -> dict[str, float]:
    """What the module's docstring lists."""
    own = [hessian.gradient(loss) for loss in hessian.losses]
    count, total = len(own), sum(own)
    squares = statistics.mean(float(one @ one) for one in own)
    signal = (float(total @ total) - count * squares) / (count * (count - 1))  # type: ignore[operator]
    curvature = statistics.mean(float(one @ hessian.times(one) / (one @ one)) for one in own[:probes])
    found = {"weights": hessian.size, "batches": count, "curvature": curvature, **hutchinson(hessian, probes)}
    return found | {"rank": found["trace"] / curvature, "share": signal / squares}


@command
def main(argv: list[str] | None = None) -> None:
    """Entry point, see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=32, help="that the loss is of, default: %(default)s")
    parser.add_argument("--probes", type=several, default=8, help="vectors of signs, and batches: default %(default)s")
    parser.add_argument("flags", nargs="+", help="after --: those of train.py")
    options = parser.parse_args(argv)
    print(json.dumps(measured(hessian_of(options.flags, options.records), options.probes)))


if __name__ == "__main__":
    main()

"""What a step costs with 2 to 4,096 workers on a network, by simulation, for docs/scaling.md.

    python scripts/benchmark/scaling.py --output scaling --calibrate        (5 minutes on two CPU cores; without, 1)

Writes scaling.json, scaling.md and scaling.png. The simulator (`network.py`, `coordinator.py`, `fleet.py`) knows
workers of different speed, latency and bandwidth of links, and collectives as ring, tree or through a coordinator,
which may leave out the slowest; one seed gives one result. With --calibrate, two processes of this machine exchange
losses by gloo, and the simulator, fitted to their steps without exchange and to the exchange alone, has to predict
their steps with it.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import exchange
import numpy as np
from fleet import Fleet, Work, step_seconds
from network import Network

from llava.runs.style import empty_figure, line_style

WORKERS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
MODELS = {"0.5b": (9.6e-3, 0.8e-3, 0.99e9, 8.8e6), "7b": (49e-3, 14.2e-3, 15.2e9, 40.4e6)}
"""Seconds of a forward and of the update, measured on an H200 (docs/performance.md: a step less the update, halved),
and bytes of gradients in bfloat16: of the language model, and of LoRA with r = 8 on all its linear layers."""
NETWORKS = {"wide": (50e-3, 12.5e6, 125e6), "local": (0.1e-3, 1.25e9, 1.25e9)}
"""Median seconds of a path, bytes a second of a worker's link and of the coordinator's: assumptions."""
BACKPROPAGATION = 4
"""Forwards that forward and backward cost, with checkpointing."""
SPREADS = {"slowness": 0.3, "jitter": 0.1, "latency": 0.5}
"""Standard deviations of logarithms: between workers, between steps of a worker, between paths. Assumptions."""
WAYS = {
    "data, ring": ("data", "ring", 0.0),
    "data, tree": ("data", "tree", 0.0),
    "data, coordinator": ("data", "coordinator", 0.0),
    "data, coordinator less 10 %": ("data", "coordinator", 0.1),
    "direction, tree": ("direction", "tree", 0.0),
    "direction, coordinator less 10 %": ("direction", "coordinator", 0.1),
    "gradient, ring": ("gradient", "ring", 0.0),
    "LoRA's gradient, ring": ("gradient", "ring", 0.0),
}


def case(model: str, net: str, name: str, workers: int, steps: int, seed: int) -> dict[str, Any]:
    """One row of the result; direction-parallel runs have a direction a worker, the others one in all."""
    way, how, drop = WAYS[name]
    rng = np.random.default_rng([seed, workers])
    latency, bandwidth, centre = NETWORKS[net]
    network = Network.drawn(workers, latency, bandwidth, SPREADS["latency"], rng, centre)
    fleet = Fleet.drawn(network, SPREADS["slowness"], SPREADS["jitter"], rng)
    forward, update, whole, adapter = MODELS[model]
    gradient = adapter if name.startswith("LoRA") else whole
    if way == "gradient":
        forward *= BACKPROPAGATION
    work = Work(way, workers if way == "direction" else 1, forward, update, gradient)
    found = step_seconds(fleet, work, how, steps, rng, drop)
    useful = work.forwards(workers) * work.forward * float(np.exp(SPREADS["slowness"] ** 2 / 2))
    row = {"model": model, "network": net, "way": name, "workers": workers, "forwards_share": useful / found["mean"]}
    return {**row, "bytes_sent": work.sent(workers), **found}


def calibration(blocks: int, steps: int, directions: int, seed: int) -> dict[str, float]:
    """Milliseconds of a step of two processes with exchange, measured and as the simulator has it."""
    ranks = exchange.measured(blocks, steps, directions)
    apart = [[row["forwards"] for row in rank["apart"]] for rank in ranks]
    logs = [[math.log(value) for value in values] for values in apart]
    jitter = math.sqrt(statistics.mean(statistics.variance(values) for values in logs))
    medians = np.exp([statistics.mean(values) for values in logs])
    update = statistics.median(row["update"] for rank in ranks for row in rank["apart"])
    # the median: who is interrupted in it, by other work of the machine, would have been in the forwards as well
    turn = statistics.median(max(pair) for pair in zip(*(rank["exchange"] for rank in ranks), strict=True))
    network = Network(np.full(2, turn / 4), math.inf, math.inf)  # a ring of two has two rounds, of two halves each
    fleet = Fleet(medians / medians.mean(), jitter, network)
    work = Work("data", directions, float(medians.mean()) / (2 * directions), update / directions)
    predicted = step_seconds(fleet, work, "ring", 2000, np.random.default_rng(seed))["mean"]
    together = [max(pair) for pair in zip(*([row["step"] for row in rank["together"]] for rank in ranks), strict=True)]
    mean, without = statistics.mean(together), statistics.mean(medians) + update
    return {
        "directions": directions,
        "forward_ms": 1e3 * work.forward,
        "update_ms": 1e3 * update,
        "jitter": jitter,
        "exchange_ms": 1e3 * turn,
        "without_exchange_ms": 1e3 * float(without),
        "measured_ms": 1e3 * mean,
        "measured_median_ms": 1e3 * statistics.median(together),
        "predicted_ms": 1e3 * predicted,
        "error": predicted / mean - 1,
    }


def table(rows: Sequence[Mapping[str, Any]], model: str, net: str, counts: Sequence[int]) -> list[str]:
    """Milliseconds of a step, a row a way and a column a number of workers."""
    lines = [
        f"| {model}, {net}: ms a step | {' | '.join(f'{n:,}' for n in counts)} |",
        "|---" * (len(counts) + 1) + "|",
    ]
    for name in WAYS:
        cells = []
        for workers in counts:
            key = (model, net, name, workers)
            row = next(r for r in rows if (r["model"], r["network"], r["way"], r["workers"]) == key)
            cells.append(f"{1e3 * row['mean']:,.0f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Seconds of a step on the wide network, a panel a model, a line a way."""
    figure, panels = empty_figure(4.6, columns=2, sharey=True)
    for axes, model in zip(panels, MODELS, strict=True):
        for number, name in enumerate(WAYS):
            own = [r for r in rows if (r["model"], r["network"], r["way"]) == (model, "wide", name)]
            style = line_style(number) | {"markersize": 4}
            axes.plot([r["workers"] for r in own], [r["mean"] for r in own], label=name, **style)
        axes.axhline(2 * MODELS[model][0], color="black", linewidth=0.8)
        axes.set_xscale("log", base=2)
        axes.set_xticks([2, 16, 128, 1024, 4096], ["2", "16", "128", "1,024", "4,096"])
        axes.set_yscale("log")
        axes.set(title=model, xlabel="workers")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("seconds a step (line: two forwards)")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize="small"
    )
    figure.savefig(path)


def main(argv: list[str] | None = None) -> None:
    """Entry point, see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="without suffix: .json, .md, .png")
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS, help="default: 2 to 4,096 in powers of two")
    parser.add_argument("--steps", type=int, default=30, help="of a simulated run, default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn, default: %(default)s")
    parser.add_argument("--calibrate", action="store_true", help="measure two processes here, and predict their steps")
    options = parser.parse_args(argv)
    report: dict[str, Any] = {"seed": options.seed, "steps": options.steps, "spreads": SPREADS}
    report |= {"models": MODELS, "networks": NETWORKS}
    if options.calibrate:
        report["calibration"] = [calibration(25, 4, directions, options.seed) for directions in (1, 4)]
    cases = [(m, net, name, n) for m in MODELS for net in NETWORKS for name in WAYS for n in options.workers]
    rows = report["rows"] = [case(*one, options.steps, options.seed) for one in cases]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    lines = [line for m in MODELS for net in NETWORKS for line in [*table(rows, m, net, options.workers), ""]]
    text = "\n".join(lines)
    if options.calibrate:
        text += "\n".join(json.dumps(one) for one in report["calibration"]) + "\n"
    options.output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    options.output.with_suffix(".md").write_text(text, encoding="utf-8")
    draw(rows, options.output.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    main()

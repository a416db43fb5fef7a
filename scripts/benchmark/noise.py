"""Nanoseconds an element of making noise and adding it, by kernel, dtype and storage, against torch.normal.

    python scripts/benchmark/noise.py [--kernel numba] [--json noise.json]        (half a minute on two CPU cores)

The element is one of a matrix of 29 million that is read, perturbed and written elsewhere, at one point or at both at
once, or updated in place. On CUDA the kernels of one call are timed by themselves, by events around a graph of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from measuring import add_json

from llava.mezo.config import KERNELS
from llava.mezo.kernels.choice import kernel_for
from llava.mezo.kernels.interface import Aim, Grid, Piece, Weight
from llava.mezo.updates import Update

ROWS, WIDTH = 32_768, 896
CALLS_IN_A_GRAPH = 10


def nanoseconds(function: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median over the repeats, after one run, for each of ROWS x WIDTH elements."""
    if device.type == "cuda":
        return _on_cuda(function, repeats)
    found = []
    for repeat in range(repeats + 1):
        begin = time.perf_counter()
        function()
        if repeat:
            found.append(time.perf_counter() - begin)
    return 1e9 * statistics.median(found) / (ROWS * WIDTH)


def _on_cuda(function: Callable[[], object], repeats: int) -> float:
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        function()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(CALLS_IN_A_GRAPH):
            function()
    found = []
    for _ in range(repeats + 1):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        found.append(begin.elapsed_time(end) / CALLS_IN_A_GRAPH)
    return 1e6 * statistics.median(found[1:]) / (ROWS * WIDTH)


def measure(name: str, device: torch.device, repeats: int, noise: str = "gaussian") -> dict[str, dict[str, float]]:
    """Perturbing (read, add noise, write) and updating, for each way of storing a weight."""
    kernel = kernel_for(name, device.type)
    found: dict[str, dict[str, float]] = {}
    for kind in (torch.float32, torch.bfloat16, torch.float16, torch.int16):
        grid = Grid(torch.full((ROWS,), 2.0**-20, device=device), WIDTH) if kind == torch.int16 else None
        values = torch.randn(ROWS, WIDTH, device=device)
        value = values.mul_(8000).to(kind) if grid else values.mul_(0.02).to(kind)
        table = kernel.table([Weight(value, 0, torch.bfloat16 if grid else kind, 0, grid)], noise)
        part = table.part([Piece(0, 0, value.numel())])
        table.aim(Aim.along(1, (1e-3, -1e-3)))
        copies = {point: torch.empty(part.size, dtype=torch.uint8, device=device) for point in (0, 1)}
        one, step = {0: copies[0]}, [Update((1,), ((1e-9,),), (1.0,))]
        functions: dict[str, Callable[[], object]] = {
            "one point": lambda t=table, p=part, c=one: t.perturb(p, c),
            "two points": lambda t=table, p=part, c=copies: t.perturb(p, c),
            "update": prepared_update(table, step),
        }
        label = "fixed16" if grid else str(kind).removeprefix("torch.")
        found[label] = {what: nanoseconds(function, device, repeats) for what, function in functions.items()}
    weight = torch.zeros(ROWS, WIDTH, dtype=torch.bfloat16, device=device)

    def usual() -> None:
        weight.add_(torch.normal(0.0, 1.0, weight.shape, dtype=weight.dtype, device=device), alpha=1e-9)

    each = nanoseconds(usual, device, 3)
    found["torch.normal, add (bfloat16)"] = {"one point": each, "two points": 2 * each, "update": each}
    return found


def prepared_update(table: object, updates: list[Update]) -> Callable[[], object]:
    """The update of a table; on CUDA without the copy of its numbers, which a graph cannot hold."""
    launch = getattr(table, "prepared_update", None)
    return launch(updates) if launch is not None else lambda: table.update(updates)  # type: ignore[attr-defined]


def markdown(found: dict[str, dict[str, float]], unit: str = "ns") -> str:
    """The table."""
    columns = next(iter(found.values()))
    scale = 1e3 if unit == "ps" else 1.0
    lines = [f"| {unit} an element | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for name, row in found.items():
        lines.append(f"| {name} | {' | '.join(f'{scale * row[column]:.2f}' for column in columns)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", choices=KERNELS, default="auto")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=7)
    add_json(parser)
    options = parser.parse_args()
    found = measure(options.kernel, torch.device(options.device), options.repeats)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {options.device}\n")
    print(markdown(found))
    usual = found["torch.normal, add (bfloat16)"]["update"]
    print(f"\ntorch.normal takes {usual / found['bfloat16']['one point']:.1f} times as long in bfloat16")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

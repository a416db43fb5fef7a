"""Nanoseconds an element of making noise and adding it, by kernel, dtype and storage, against torch.normal.

    python scripts/benchmark/noise.py [--kernel numba] [--json noise.json]        (half a minute on two CPU cores)

The element is one of a matrix of 29 million that is read, perturbed and written elsewhere, or updated in place.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from llava.mezo.config import KERNELS
from llava.mezo.kernels import Field, Grid
from llava.mezo.noise import kernel_for

ROWS, WIDTH = 32_768, 896
FIELD = Field(0, "gaussian")


def nanoseconds(function: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median over the repeats, after one run, for each of ROWS x WIDTH elements."""
    found = []
    for repeat in range(repeats + 1):
        begin = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if repeat:
            found.append(time.perf_counter() - begin)
    return 1e9 * statistics.median(found) / (ROWS * WIDTH)


def measure(name: str, device: torch.device, repeats: int) -> dict[str, dict[str, float]]:
    """Perturbing (read, add noise, write) and updating, for each way of storing a weight."""
    kernel = kernel_for(name, device.type)
    table: dict[str, dict[str, float]] = {}
    for kind in (torch.float32, torch.bfloat16, torch.float16, torch.int16):
        grid = Grid(torch.full((ROWS,), 2.0**-20, device=device), WIDTH) if kind == torch.int16 else None
        values = torch.randn(ROWS, WIDTH, device=device)
        weight = values.mul_(8000).to(kind) if grid else values.mul_(0.02).to(kind)
        out = torch.empty(weight.shape, dtype=torch.bfloat16 if grid else kind, device=device)
        functions = {
            "perturb": lambda weight=weight, out=out, grid=grid: kernel.perturb(weight, out, FIELD, 1, 1e-3, 0, grid),
            "update": lambda weight=weight, grid=grid: kernel.update(weight, FIELD, [1], [1e-9], 1.0, 0, grid),
        }
        label = "fixed16" if grid else str(kind).removeprefix("torch.")
        table[label] = {what: nanoseconds(function, device, repeats) for what, function in functions.items()}
    weight = torch.zeros(ROWS, WIDTH, dtype=torch.bfloat16, device=device)

    def usual() -> None:
        weight.add_(torch.normal(0.0, 1.0, weight.shape, dtype=weight.dtype, device=device), alpha=1e-9)

    table["torch.normal, add (bfloat16)"] = {"perturb": nanoseconds(usual, device, 3)}
    return table


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", choices=KERNELS, default="auto")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    table = measure(options.kernel, torch.device(options.device), options.repeats)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {options.device}\n")
    print("| ns an element | perturb | update |\n|---|---|---|")
    for name, row in table.items():
        print(f"| {name} | {row['perturb']:.2f} | {row.get('update', row['perturb']):.2f} |")
    usual = table["torch.normal, add (bfloat16)"]["perturb"]
    print(f"\ntorch.normal takes {usual / table['bfloat16']['perturb']:.1f} times as long in bfloat16")
    if options.json:
        options.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""The pictures of docs/ whose runs are not kept, from the tables of docs/reproduction.md and docs/log.md.

    python scripts/study/table_pictures.py                             (seconds; writes docs/pictures/)

So a picture says what its table says. The pictures of loss curves have no table; the runs that they are of are named
below them.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from pictures import plot_against, plot_grid, plot_memory, plot_parts, plot_rows, plot_shares, plot_windows

from llava.errors import InputError, command
from llava.runs.plots import plot_bars

DOCS = Path(__file__).resolve().parents[2] / "docs"
NUMBER = r"-?\d+(?:,\d{3})*(?:\.\d+)?"
BATCHES = {"MeZO": 4, "AdamW": 1}  # of the study's budgets, which the text above the first table has
VALIDATION_RECORDS, TEST_RECORDS = 200, 500

Rows = list[list[str]]


def table_after(document: str, heading: str, columns: Sequence[str]) -> Rows:
    """The rows, without the heads, of the first table below a heading that has all of these columns.

    Raises:
        InputError: there is no such heading or table.
    """
    text = (DOCS / document).read_text(encoding="utf-8")
    _, found, rest = text.partition(f"# {heading}\n")
    lines = re.split(r"\n#+ ", rest, maxsplit=1)[0].splitlines()
    for number, line in enumerate(lines):
        if found and line.startswith("|") and all(column in line for column in columns):
            body = lines[number + 2 :]
            end = next((k for k, row in enumerate(body) if not row.startswith("|")), len(body))
            return [[cell.strip() for cell in row.strip("|").split("|")] for row in body[:end]]
    raise InputError(f"docs/{document}: no table with the columns {', '.join(columns)} below {heading!r}")


def numbers(cell: str) -> list[float]:
    """The numbers of a cell."""
    return [float(found.replace(",", "")) for found in re.findall(NUMBER, cell)]


def accuracy(path: Path) -> None:
    """Accuracy of both methods with three choices of parts, on three tasks."""
    bars = []
    for task, method, parts, rate, steps, _, before, after, *_ in table_after(
        "reproduction.md", "Methods and parts", ["method", "parts", "before %", "after %"]
    ):
        value, spread = numbers(after)
        samples = BATCHES[method] * int(steps)
        series = f"{method}, {samples:,} samples"
        bars.append(
            {"block": task, "series": series, "label": f"{method}, {parts}, lr {rate}", "value": value}
            | {"spread": spread, "before": numbers(before)[0]}
        )
    plot_bars(bars, path, "Accuracy on the test set (3 seeds), before and after training")


def batch_size(path: Path) -> None:
    """Accuracy by batch and steps, at two rules for the learning rate."""
    rows = []
    for batch, steps, usual, rise, rate, scaled, _ in table_after(
        "reproduction.md", "Batch size", ["batch", "steps", "in proportion"]
    ):
        samples = int(numbers(batch)[0] * numbers(steps)[0])
        label = f"{steps} steps × {batch} = {samples:,} samples"
        rows.append((samples, {"label": label, "value": numbers(usual)[0], "series": "lr 1e-4", "note": rise}))
        if scaled:
            series = "lr in proportion to the batch"
            rows.append((samples, {"label": f"{label}, lr {rate}", "value": numbers(scaled)[0], "series": series}))
    rows.sort(key=lambda row: row[0])
    plot_rows([row for _, row in rows], path, "Yes / no task, test set: MeZO with batches of 1 to 8", TEST_RECORDS)


def signal(path: Path) -> None:
    """The signal's share of the squared projected gradient, by fifths of four runs."""
    runs = {}
    for name, shares in table_after("reproduction.md", "What the journals say", ["signal's share"]):
        found = numbers(shares)
        task, rate = name.split(", ")
        remark = f" {shares[shares.index('(') :]}" if "(" in shares else ""
        runs[f"{task}, lr {rate}{remark}"] = [
            {"step": 1000 * (k + 1), "share": share / 100, "error": error / 100}
            for k, (share, error) in enumerate(zip(found[::2], found[1::2], strict=True))
        ]
    plot_windows(runs, path)


def rate_and_eps(path: Path) -> None:
    """Accuracy by learning rate and eps on the yes / no task."""
    rows = table_after("reproduction.md", "Learning rates", ["eps 1e-4", "1e-3", "1e-2"])
    sizes = ["1e-4", "1e-3", "1e-2"]
    cells: dict[tuple[str, str], float | None] = {
        (row[0].removeprefix("lr "), eps): numbers(cell)[0]
        for row in rows
        for eps, cell in zip(sizes, row[1:], strict=True)
        if cell
    }
    before = table_after("reproduction.md", "Learning rates", ["zero-shot", "AdamW 1e-4"])[0][1]
    title = "scan: MeZO, 2,500 steps × 4 samples, accuracy on the validation set, %"
    rates = [row[0].removeprefix("lr ") for row in rows]
    plot_grid(cells, rates, sizes, path, title, numbers(before)[0], VALIDATION_RECORDS)


def memory(path: Path) -> None:
    """Peak memory by method, from both ways of measuring it."""
    blocks: dict[str, dict[str, dict[str, float]]] = {}
    resident = table_after("reproduction.md", "Memory", ["method", "weights, GB", "over them"])
    blocks["resident size"] = {
        name: {"weights": numbers(weights)[0], "over the weights": numbers(over)[0]}
        for name, weights, over, *_ in resident
    }
    blocks["bytes of live tensors, counted"] = {
        name.split(",")[0].split(" (")[0]: {
            "weights": numbers(peak)[0] - numbers(over)[0],
            "over the weights": numbers(over)[0],
        }
        for name, over, peak, *_ in table_after("reproduction.md", "Memory", ["method", "over the weights, GB", "peak"])
    }
    plot_memory(blocks, path, "Peak memory at the 0.5B shape, one row of 2,048 tokens, bfloat16")


def storage(column: int, title: str) -> Callable[[Path], None]:
    """Test loss of the five schemes, from the column of a task."""

    def draw(path: Path) -> None:
        text = (DOCS / "log.md").read_text(encoding="utf-8")
        head = next(line for line in text.splitlines() if line.startswith("| scheme | words: loss"))
        steps = numbers(head.strip("|").split("|")[column].split("at", 1)[1])
        heading = "2026-11-24: how 16-bit weights are kept"
        rows = table_after("log.md", heading, ["scheme", "words: loss"])
        curves = {
            _scheme(row[0]): list(zip(steps, numbers(row[column].replace(", ", " ")), strict=True)) for row in rows
        }
        plot_against(curves, "fp32", path, title, "test loss (cross entropy per token)")

    return draw


def rounding(path: Path) -> None:
    """Shares of rounding and curvature in slopes, by eps, before and after training."""
    sizes = ["3e-4", "1e-3", "3e-3", "1e-2", "3e-2"]
    curves, state = {}, ""
    for row in table_after("reproduction.md", "Rounding", ["slopes from", "eps 3e-4"]):
        state = row[0] or state
        side = row[2].split(",")[0]
        shares = [numbers(cell)[0] / 100 for cell in row[3:]]
        curves[f"{state}, {side}"] = list(zip(map(float, sizes), shares, strict=True))
    plot_shares(curves, path, "Rounding (left) and curvature (right) in slopes of bfloat16 forwards")


def by_layer(path: Path) -> None:
    """Slope and curvature of each part of a language model."""
    rows = table_after("reproduction.md", "Upper layers", ["part", "trace of the Hessian"])
    columns: dict[str, dict[str, dict[str, tuple[float, float]]]] = {}
    for name, _, slope, _, trace, _ in rows:
        for quantity, cell in (("|g|^2", slope), ("trace of the Hessian", trace)):
            value, error = numbers(cell)
            columns.setdefault(f"{quantity}, ± standard error", {"": {}})[""][name] = value, error
    plot_parts(columns, path, "SmolLM2-135M on rated sentences, before training: slope and curvature by part")


def on_three_tasks(heading: str, marks: dict[str, str], by: str) -> Callable[[Path], None]:
    """Accuracy of three seeds by task, from tables whose cells are a name, two of settings, and one a task.

    Args:
        marks: a column of the table of each series that the others have not, by the series' name.
        by: what the names are of, for the title.
    """

    def draw(path: Path) -> None:
        runs = table_after("reproduction.md", "Methods and parts", ["method", "parts", "before %", "after %"])
        origins = {f"{task}, %": numbers(before)[0] for task, _, _, _, _, _, before, *_ in runs}
        columns: dict[str, dict[str, dict[str, tuple[float, float]]]] = {}
        for series, mark in marks.items():
            for row, _, _, *accuracies in table_after("reproduction.md", heading, ["scan %", mark]):
                name = re.sub("[`*]", "", row).removesuffix(", 5,000 steps")
                for task, cell in zip(origins, accuracies, strict=False):
                    if cell:
                        value, spread = numbers(cell)
                        columns.setdefault(task, {}).setdefault(series, {})[name] = value, spread
        plot_parts(columns, path, f"Accuracy on the test set by {by}, ± deviation of 3 seeds; line: before", origins)

    return draw


def _scheme(cell: str) -> str:
    """As in the table, without its marks and remarks."""
    name = cell.replace("`", "").split(" (")[0]
    return {"not perturbed, rounded to nearest": "rounded to nearest", "in-place": "in place"}.get(name, name)


PICTURES: dict[str, Callable[[Path], None]] = {
    "study_accuracy": accuracy,
    "study_batch_size": batch_size,
    "study_signal": signal,
    "study_rate_and_eps": rate_and_eps,
    "study_memory": memory,
    "study_rounding": rounding,
    "study_by_layer": by_layer,
    "study_adapters": on_three_tasks(
        "Accuracy", {"backpropagation": "memory at 0.5b", "MeZO": "of AdamW's gain"}, "what is trained"
    ),
    "study_algorithms": on_three_tasks(
        "Estimators, rules and orders",
        {f"{number} forwards of a sample": f"{number} sample-forwards" for number in ("20,000", "40,000")},
        "estimator, rule and order",
    ),
    "storage_words": storage(1, "Language model of 135M on words: bfloat16 forward, weights kept in five ways"),
    "storage_tiny": storage(3, "Tiny model on scans: bfloat16 forward, weights kept in five ways"),
}


@command
def main(argv: list[str] | None = None) -> None:
    """Entry point, see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=DOCS / "pictures", help="folder; default: docs/pictures")
    options = parser.parse_args(argv)
    options.output.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        draw(options.output / f"{name}.png")


if __name__ == "__main__":
    main()

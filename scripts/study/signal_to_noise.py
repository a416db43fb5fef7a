"""What the journals of MeZO runs say about their progress: signal and noise of the projected gradient over time.

    python scripts/study/signal_to_noise.py runs/study/runs/chart-mezo-* --output runs/study/signal    (seconds)

A step along z moves the weights by -lr p z, where p is the projected gradient. Over z ~ N(0, I), with g the gradient of
the expected loss and g_B that of the batch, at first order in lr,

    E[p^2] = |g_B|^2,        E[change of the expected loss] = -lr |g|^2.

So the mean of p^2 in a window is the square of what the steps follow, and the fall of the loss by lr what of it was
signal; curvature takes some of the fall, so that their ratio is, in expectation, a lower bound of the signal's share.
The rest is the batch's own and goes down with the batch. Batches differ more than the loss falls, so each share comes
with its standard error. Writes FILE.md and FILE.png with a row and a point for each fifth of a
run; a finished run is called by its task and settings, another by its folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean, variance

from pictures import plot_windows

from llava.errors import InputError, command
from llava.mezo.algorithms.course import Course
from llava.mezo.errors import JournalError
from llava.mezo.journal.files import Journal
from llava.mezo.journal.records import applied_steps
from llava.runs.report import run_name
from llava.runs.run_report import REPORT_FILE
from llava.runs.runs import grouped, read_run, varying

WINDOWS = 5


def windows(journal: Journal) -> list[dict[str, float]]:
    """For each fifth of the steps: step, loss, rms of the projected gradient, the signal's share of its square, error.

    The fall of the loss is that from one half of the window to the other; its error is that of the two means.
    """
    steps = list(applied_steps(journal.records, Course(journal.header)))
    size = len(steps) // WINDOWS
    rows = []
    for first in range(0, size * WINDOWS, size):
        part = steps[first : first + size]
        losses = [record.loss for record, _ in part]
        halves = losses[: size // 2], losses[size // 2 :]
        square = mean(term.projected_grad**2 for _, proposal in part for term in proposal.terms)
        scale = 2 / size / mean(record.rates[0] for record, _ in part) / square
        error = sum(variance(half) / len(half) for half in halves) ** 0.5
        share = scale * (mean(halves[0]) - mean(halves[1]))
        row = {"step": first + size, "loss": mean(losses), "rms": square**0.5, "share": share, "error": scale * error}
        rows.append(row)
    return rows


def windows_by_name(folders: list[Path]) -> dict[str, list[dict[str, float]]]:
    """`windows` of the journals of some runs, by what these are called. InputError: one is too short, or has none."""
    found = {}
    for folder, name in names_of(folders).items():
        try:
            journal = Journal.read(folder / "mezo_journal")
        except JournalError as error:
            raise InputError(str(error)) from error
        if len(journal.records) < 2 * WINDOWS:
            raise InputError(f"{folder}: {len(journal.records)} steps, but at least {2 * WINDOWS} are needed")
        found[name] = windows(journal)
    return found


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """A row for each window of each run."""
    lines = ["| run | to step | loss | rms of the projected gradient | signal's share % |", "|---|---|---|---|---|"]
    for name, rows in found.items():
        for row in rows:
            share = f"{100 * row['share']:.1f} ± {100 * row['error']:.1f}"
            lines.append(f"| {name} | {row['step']:.0f} | {row['loss']:.3f} | {row['rms']:.2f} | {share} |")
    return "\n".join(lines) + "\n"


def names_of(folders: list[Path]) -> dict[Path, str]:
    """What the runs are called: task, method and the settings in which they differ."""
    finished = {folder: read_run(folder) for folder in folders if (folder / REPORT_FILE).exists()}
    columns = [name for name in varying(grouped(finished.values())) if name not in ("max_steps", "evaluation")]
    names = {folder: run_name(run, columns) for folder, run in finished.items()}
    return {folder: names.get(folder, folder.name) for folder in folders}


@command
def main(argv: list[str] | None = None) -> None:
    """Entry point, see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="output folders of MeZO runs")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="without suffix: .md and .png")
    options = parser.parse_args(argv)
    found = windows_by_name(options.runs)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.with_suffix(".md").write_text(table(found), encoding="utf-8")
    plot_windows(found, options.output.with_suffix(".png"))
    print(table(found))


if __name__ == "__main__":
    main()

"""How sharp the loss is in the weights of each kind of adapter, where its run starts: eigenvalues of the Hessian.

    python scripts/study/eigenvalues.py                                             (30 minutes on two CPU cores)
    python scripts/study/eigenvalues.py --kinds lora pissa --name words -- FLAGS OF train.py

The loss is that of the first records of each task, in batches of four, as adapters.py trains them with AdamW; or that
of one run, by its FLAGS without an adapter. `none` is all weights of the language model. Results that are there are
not computed again. Writes eigenvalues.md and eigenvalues.png:

    largest, lowest    by Lanczos, with bounds of their errors (llava/train/lanczos.py)
    trace, |H|         with Frobenius' norm, by Hutchinson's estimator, with its standard error
    effective rank     |H|^2 over the square of the largest size: so many directions as sharp as that one would make |H|
"""

from __future__ import annotations

import argparse
import math
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from candidates import BATCH
from effective_rank import hessian_of, hutchinson, several
from planned_run import environment_of, usual_run, words_of
from settings import chosen_tasks, once, parsed, positive, study_parser

from llava.errors import command
from llava.model.adapter_kinds import ADAPTERS
from llava.runs.style import COLOURS, HATCHES, empty_figure
from llava.train.lanczos import Ritz, extreme_eigenvalues

KINDS = ("none", "lora", "dora", "pissa", "milora")
Found = Mapping[str, Any]


def measured(flags: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """What the table has of a run, for a JSON file."""
    hessian = hessian_of(flags, options.records)
    extremes = extreme_eigenvalues(hessian.times, hessian.random(0))
    return {"weights": hessian.size, **asdict(extremes), **hutchinson(hessian, options.probes)}


def runs_of(options: argparse.Namespace) -> Iterator[tuple[str, str, list[str]]]:
    """(task, kind, flags of train.py) of all that is asked for."""
    if options.flags:
        for kind in options.kinds:
            yield options.name, kind, [*options.flags, "--adapter", kind]
        return
    for task in chosen_tasks(options):
        for kind in options.kinds:
            run = usual_run(options, "adamw", task, adapter=kind, per_device_train_batch_size=BATCH)
            shown = subprocess.run(
                [*words_of(run, options), "--dry_run"],
                env=environment_of(run, options.output / run.name, options, slot=0),
                capture_output=True,
                text=True,
                check=True,
            )
            words = shlex.split(shown.stdout)
            yield task.name, kind, words[words.index("--") + 1 :]


def in_size(found: Found) -> float:
    """The largest size of an eigenvalue, whatever its sign."""
    return max(abs(found["largest"][0]["value"]), abs(found["lowest"]["value"]))


def table(rows: Mapping[tuple[str, str], Found]) -> str:
    """A row a run."""
    lines = ["| task | adapter | weights | largest | lowest | trace | \\|H\\| | effective rank |", "|---" * 8 + "|"]
    for (task, kind), found in rows.items():
        cells = [task, kind, f"{found['weights']:,}", str(Ritz(**found["largest"][0])), str(Ritz(**found["lowest"]))]
        cells += [f"{found['trace']:.3g} ± {found['trace_error']:.3g}", f"{found['frobenius']:.3g}"]
        lines.append(f"| {' | '.join(cells)} | {(found['frobenius'] / in_size(found)) ** 2:.3g} |")
    return "\n".join(lines) + "\n"


def draw(rows: Mapping[tuple[str, str], Found], path: Path) -> None:
    """Largest eigenvalue and size of the lowest, a panel a task, on one axis of powers of ten."""
    tasks = list(dict.fromkeys(task for task, _ in rows))
    figure, panels = empty_figure(3.6, columns=len(tasks), sharey=True, squeeze=False)
    for axes, task in zip(panels[0], tasks, strict=True):
        here = {kind: found for (name, kind), found in rows.items() if name == task}
        ends = {
            "largest": [found["largest"][0]["value"] for found in here.values()],
            "lowest, its size": [-found["lowest"]["value"] for found in here.values()],
        }
        for number, (name, values) in enumerate(ends.items()):
            places = [place + 0.4 * number - 0.2 for place in range(len(here))]
            look = {"facecolor": COLOURS[number], "hatch": HATCHES[number], "edgecolor": "white"}
            axes.bar(places, values, 0.4, label=name, **look)
        axes.set_xticks(range(len(here)), list(here), fontsize="small")
        axes.set(yscale="log", title=task)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
    panels[0][0].set_ylabel("eigenvalue of the Hessian")
    panels[0][0].set_ylim(bottom=10 ** math.floor(math.log10(panels[0][0].get_ylim()[0])))  # bars from a power of ten
    handles = panels[0][0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=2, frameon=False, fontsize="small")
    figure.savefig(path)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Do what is missing, then write the page and the picture."""
    parser = study_parser(__doc__)
    parser.add_argument("--kinds", nargs="+", choices=ADAPTERS, default=KINDS, help=f"default: {' '.join(KINDS)}")
    parser.add_argument("--records", type=positive, default=32, help="that the loss is of, default: %(default)s")
    parser.add_argument("--probes", type=several, default=8, help="vectors of signs, default: %(default)s")
    parser.add_argument("--name", default="run", help="of the task that FLAGS are of, default: %(default)s")
    parser.add_argument("flags", nargs="*", help="after --: those of train.py, instead of tasks")
    options = parsed(parser, argv)
    folder, rows = options.output / "eigenvalues", {}
    for task, kind, flags in runs_of(options):
        rows[task, kind] = once(
            folder / f"{task}-{kind}-{options.records}.json", lambda flags=flags: measured(flags, options)
        )
    text = table(rows)
    (options.output / "eigenvalues.md").write_text(f"# Eigenvalues\n\n{text}", encoding="utf-8")
    draw(rows, options.output / "eigenvalues.png")
    print(text)


if __name__ == "__main__":
    main()

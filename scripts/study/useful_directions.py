"""How many workers a step can use before more do not help: from journals, and the effective rank of the loss.

    python scripts/study/useful_directions.py RUN_DIR [RUN_DIR ...] --rank R --output FILE             (seconds)

Let g be the gradient of the expected loss, g_B that of a batch, s = |g|^2 / E|g_B|^2 the signal's share, H the Hessian
with curvature k along gradients, and r = tr(H) / k. A step of rate lr along an estimate e changes the expected loss, to
second order, by -lr g'e + lr^2 e'He / 2, at the best rate by -(E g'e)^2 / (2 E e'He). With z ~ N(0, I), E[zz'Hzz'] =
tr(H) I + 2H gives, for an estimate from W workers, in units of what a whole gradient would gain:

    one direction, W batches       1 / ((r + 2) (1 + (1/s - 1) / W))
    W directions on one batch      s / (1 + (r + 1) / W)
    W directions, a batch each     1 / (1 + ((r + 2) / s - 1) / W)

The second is n-SPSA of Malladi et al. (2023, section 4): their gamma = (d r + d - 2) / (n (d + 2)) + 1 is its 1 +
(r + 1) / W but for the one that comes of z of fixed length. Each has an end, half of which it reaches with so many
workers: 1/s - 1, r + 1 and (r + 2) / s - 1. s is that of `signal_to_noise.py`, a lower bound.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from signal_to_noise import windows_by_name

from llava.errors import InputError, command
from llava.runs.style import empty_figure, line_style

WAYS = ("one direction, a batch each", "directions on one batch", "directions, a batch each")
WORKERS = [2**k for k in range(17)]


def progress(way: str, workers: float, share: float, rank: float) -> float:
    """Fall of the loss in a step at the best rate, in units of that along the whole gradient: see the docstring."""
    if way == WAYS[0]:
        return 1 / ((rank + 2) * (1 + (1 / share - 1) / workers))
    if way == WAYS[1]:
        return share / (1 + (rank + 1) / workers)
    return 1 / (1 + ((rank + 2) / share - 1) / workers)


def half(way: str, share: float, rank: float) -> float:
    """Workers with which a step gains half of what any number of them could."""
    return {WAYS[0]: 1 / share - 1, WAYS[1]: rank + 1, WAYS[2]: (rank + 2) / share - 1}[way]


def first_share(rows: Sequence[Mapping[str, float]]) -> tuple[float, float]:
    """The signal's share in the first window of a run, and its error. InputError: no signal is seen."""
    share, error = rows[0]["share"], rows[0]["error"]
    if share <= error:
        raise InputError(f"no signal is seen in the first fifth: {100 * share:.1f} ± {100 * error:.1f} %; a longer run")
    return min(share, 1.0), error


def draw(runs: Mapping[str, tuple[float, float]], rank: float, path: Path) -> None:
    """Gain of a step with W workers over that with one, a panel a way, a line a run."""
    figure, panels = empty_figure(3.8, columns=len(WAYS), sharey=True)
    for axes, way in zip(panels, WAYS, strict=True):
        for number, (name, (share, _)) in enumerate(runs.items()):
            one = progress(WAYS[0], 1, share, rank)
            gains = [progress(way, workers, share, rank) / one for workers in WORKERS]
            style = line_style(number)
            axes.plot(WORKERS, gains, label=name, **style | {"markersize": 3})
            axes.axvline(half(way, share, rank), color=style["color"], linestyle=style["linestyle"], linewidth=0.8)
        axes.plot(WORKERS, WORKERS, color="black", linewidth=0.6)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(way, fontsize="medium")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("a step's gain, in those of one worker")
    figure.supxlabel("workers (upright: half of what more could gain; thin: in proportion)", fontsize="medium")
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=3, frameon=False, fontsize="small")
    figure.savefig(path)


@command
def main(argv: list[str] | None = None) -> None:
    """Entry point, see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="output folders of MeZO runs")
    parser.add_argument("--rank", type=float, required=True, help="r, as effective_rank.py measures it")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="without suffix: .json and .png")
    options = parser.parse_args(argv)
    if not options.rank >= 1:
        raise InputError(f"--rank {options.rank}: at least 1")
    found = {name: first_share(rows) for name, rows in windows_by_name(options.runs).items()}
    rows = {
        name: {"share": share, "error": error, **{way: half(way, share, options.rank) for way in WAYS}}
        for name, (share, error) in found.items()
    }
    text = json.dumps({"rank": options.rank, "half_of_the_end_with_workers": rows}, indent=1) + "\n"
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.with_suffix(".json").write_text(text, encoding="utf-8")
    draw(found, options.rank, options.output.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    main()

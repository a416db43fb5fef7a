"""What the study's experiments have in common: tasks, parts, learning rates, and the command line of the scripts.

The same experiments run on the drawn tasks with the embedded checkpoint (preset demo) and on the public sets with
LLaVA-OneVision (presets 0.5b and 7b), where `--data` is a folder with br35h/, we_math/ and chartqa/ as
`python -m llava.data.prepare` makes them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, TypeVar

import torch

from llava.data.prepare import SETS as PUBLIC_SETS
from llava.errors import InputError
from llava.mezo.durable import write_durably
from llava.toy.demo import SETS, split_samples
from llava.toy.records import write_split

ROOT = Path(__file__).resolve().parents[2]
PARTS = {
    "lm": "mm_language_model",
    "lm+projector": "mm_mlp_adapter,mm_language_model",
    "lm+projector+vision": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
}
MODELS = {
    "demo": str(ROOT / "playground" / "tiny-llava-onevision"),
    "0.5b": "lmms-lab/llava-onevision-qwen2-0.5b-si",
    "7b": "lmms-lab/llava-onevision-qwen2-7b-si",
}
DRAWN_SIZES = {"train": 1000, "val": 200, "test": 500}
# Of the drawn tasks, best of rate_and_eps.py on the validation set. On chart AdamW's 1e-4 and 3e-4 are equal there, and
# the lower one is far better with the tower trained; MeZO's is one at which no seed diverges.
DRAWN_RATES = {
    "mezo": {"scan": "1e-4", "figure": "5e-5", "chart": "5e-5"},
    "adamw": {"scan": "1e-4", "figure": "3e-4", "chart": "1e-4"},
}
STEPS = {"mezo": 5000, "adamw": 3000}  # of the study
STUDY_RATE = "1e-6"
METRIC = "exact"  # of the study, on all of its tasks

T = TypeVar("T")


@dataclass(frozen=True)
class Task:
    """A data set: `folder` has train.json, val.json and test.json, `images` the pictures that they name.

    `base` is the task whose learning rates hold, for a variant of one.
    """

    name: str
    folder: Path
    images: Path
    base: str = ""

    def file(self, split: str) -> Path:
        """The records of a split."""
        return self.folder / f"{split}.json"


def study_parser(description: str | None, tasks: int = 3) -> argparse.ArgumentParser:
    """The flags that all experiments have; by default the first `tasks` tasks are used."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=MODELS, default="demo", help="demo: drawn tasks, embedded checkpoint")
    parser.add_argument("--data", type=Path, help="0.5b, 7b: folder with br35h/, we_math/ and chartqa/")
    parser.add_argument("--model", help="checkpoint folder or hub id instead of the preset's")
    parser.add_argument("--output", type=Path, help="runs of all experiments, and pages; default: runs/study/PRESET")
    parser.add_argument("--tasks", nargs="+", help="some of scan figure chart, or of br35h we_math chartqa")
    parser.add_argument("--seeds", type=counting, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=positive, help="of MeZO, instead of the study's 5000")
    parser.add_argument(
        "--jobs", type=positive, default=default_jobs(), help="runs at a time; one GPU each, or part of the cores"
    )
    parser.add_argument(
        "--keep_models", action="store_true", help="keep the weights of finished runs (journals stay anyway)"
    )
    parser.set_defaults(number_of_tasks=tasks)
    return parser


def add_budget(parser: argparse.ArgumentParser) -> None:
    """The flag of experiments that may be stopped between two runs."""
    parser.add_argument("--budget", type=float, metavar="MINUTES", help="start no run after so long; default: all")


def deadline_of(options: argparse.Namespace) -> float | None:
    """`time.time()` at the end of `--budget`."""
    return None if options.budget is None else time.time() + 60 * options.budget


def from_middle(value: T, values: Sequence[T]) -> float:
    """How far from the middle of a list one of its values is; runs start there, where the best one is likeliest."""
    return abs(values.index(value) - (len(values) - 1) / 2)


def parsed(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags, with the output folder of the preset where none is given."""
    options = parser.parse_args(argv)
    options.output = options.output or Path("runs") / "study" / options.preset
    return options


def positive(text: str) -> int:
    """A number from 1 on, for argparse."""
    return counting(text, least=1)


def counting(text: str, least: int = 0) -> int:
    """A number from `least` on, for argparse."""
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from {least} on")
    return int(text)


def mean_and_spread(percentages: Sequence[float]) -> str:
    """Mean and, of several, standard deviation (n - 1); nothing of none."""
    if not percentages:
        return ""
    return f"{mean(percentages):.1f}" + (f" ± {stdev(percentages):.1f}" if len(percentages) > 1 else "")


def default_jobs() -> int:
    """One run a GPU; without any, one run a core (a tiny model does not gain from threads)."""
    return torch.cuda.device_count() or os.cpu_count() or 1


def chosen_tasks(options: argparse.Namespace) -> list[Task]:
    """The tasks of the flags; those of the demo are drawn if they are not there.

    Raises:
        InputError: an unknown task, or data that is missing.
    """
    drawn = options.preset == "demo" and options.data is None
    known = list(SETS if options.preset == "demo" else PUBLIC_SETS)
    names = options.tasks or known[: options.number_of_tasks]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(f"--tasks {' '.join(unknown)}: preset {options.preset} has {', '.join(known)}")
    if options.data is None and not drawn:
        raise InputError(f"--preset {options.preset} needs --data, a folder with {', '.join(f'{n}/' for n in known)}")
    data = (options.output / "data" if drawn else options.data).resolve()
    tasks = [Task(name, data / name, data / name) for name in names]
    for task in tasks:
        if drawn and not task.folder.exists():
            _draw(task)
        for split in DRAWN_SIZES:
            if not task.file(split).is_file():
                raise InputError(
                    f"--data {options.data}: no {task.file(split)}; see python -m llava.data.prepare --help"
                )
    return tasks


def _draw(task: Task) -> None:
    """Draw a task of the demo; its folder has its name once it is complete."""
    part = task.folder.with_name(f"{task.name}.{os.getpid()}.part")
    for split, samples in split_samples(task.name, seed=42, sizes=DRAWN_SIZES).items():
        write_split(part, split, task.name, samples)
    with contextlib.suppress(OSError):  # another script was faster
        part.rename(task.folder)


def once(file: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result in the JSON file, made now unless it is there."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_durably(file, json.dumps(make()) + "\n")
    read: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return read


def rate(options: argparse.Namespace, method: str, task: Task) -> str:
    """The learning rate of a method on a task."""
    return DRAWN_RATES[method][task.base or task.name] if options.preset == "demo" else STUDY_RATE


def model_of(options: argparse.Namespace) -> str:
    """The checkpoint that the runs start from."""
    return options.model or MODELS[options.preset]

"""A run that an experiment asks for: its name, its command and its environment."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from settings import METRIC, PARTS, ROOT, STEPS, Task, model_of, rate

from llava.train.slots import environment_of_slot

SHORT = {
    "--learning_rate": "lr",
    "--per_device_train_batch_size": "b",
    "--max_steps": "n",
    "--zo_eps": "eps",
    "--zo_num_directions": "d",
    "--train_on_answers_only": "answers",
}


@dataclass(frozen=True)
class Run:
    """One run of a *_onevision_si.sh script.

    Attributes:
        method: mezo or adamw.
        parts: a key of `PARTS`.
        seed: of the order of the data and of the directions.
        flags: of train.py, beyond those of the script.
        split: the evaluation set.
    """

    method: str
    task: Task
    parts: str = "lm"
    seed: int = 0
    flags: dict[str, str] = field(default_factory=dict)
    split: str = "test"

    @property
    def name(self) -> str:
        """What the run's folder is called; runs of one pool that differ have different names."""
        flags = [f"{SHORT.get(flag, flag.strip('-'))}{_last_part(value)}" for flag, value in self.flags.items()]
        words = [self.task.name, self.method, self.parts, *flags, f"s{self.seed}"]
        return "-".join(words if self.split == "test" else [*words, self.split])


def _last_part(value: str) -> str:
    """Of a file, its name."""
    return value.rsplit("/", 1)[-1]


def usual_run(
    options: argparse.Namespace,
    method: str,
    task: Task,
    parts: str = "lm",
    seed: int = 0,
    split: str = "test",
    **changes: Any,
) -> Run:
    """A run at the study's settings with the task's learning rate; `changes` are flags of train.py that differ."""
    steps = options.steps if method == "mezo" and options.steps else STEPS[method]
    flags = {"--learning_rate": rate(options, method, task), "--max_steps": str(steps)}
    flags |= {f"--{name}": str(value) for name, value in changes.items()}
    return Run(method, task, parts, seed, flags, split)


def words_of(run: Run, options: argparse.Namespace) -> list[str]:
    """The words of the run's command."""
    flags = [word for flag, value in run.flags.items() for word in (flag, value)]
    flags += ["--seed", str(run.seed)]
    if run.method == "mezo":
        flags += ["--zo_seed", str(run.seed)]
    if "vision" in run.parts:
        flags += ["--mm_vision_tower_lr", run.flags["--learning_rate"]]
    else:
        flags += ["--mm_feature_cache", str((options.output / "features").resolve())]
    if options.preset == "demo":
        flags += ["--image_aspect_ratio", "square"]  # a drawing is one tile; anyres would show it twice
    script = ROOT / "scripts" / "train" / f"{run.method}_onevision_si.sh"
    return ["bash", str(script), options.preset, *flags]


def environment_of(run: Run, folder: Path, options: argparse.Namespace, slot: int) -> dict[str, str]:
    """The environment of the run's command, for output folder `folder`, as number `slot` of the runs at a time."""
    given = {
        "MODEL": model_of(options),
        "DATA_PATH": str(run.task.file("train")),
        "IMAGE_FOLDER": str(run.task.images),
        "EVAL_DATA": str(run.task.file(run.split)),
        "EVAL_METRIC": METRIC,
        "OUTPUT_DIR": str(folder),
        "MM_TUNABLE_PARTS": PARTS[run.parts],
        "NUM_GPUS": "1",
        "PYTHON": sys.executable,
    }
    return {**os.environ, **given, **environment_of_slot(slot, options.jobs)}

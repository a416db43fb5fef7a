"""Run what an experiment needs: several runs at a time, none of them twice.

All experiments share one pool of runs, `OUTPUT/runs/NAME`, where the name says what is particular to a run. A run that
is there is not repeated, and one that was interrupted goes on where it was. Each leaves its report, its losses, its
answers, its log and (MeZO) its journal; weights are removed unless --keep_models is given.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from settings import MODELS, PARTS, ROOT, STEPS, Task, rate
from tqdm.auto import tqdm

EXIT_DIVERGED = 3
FAILED_FILE = "diverged.json"
SHORT = {
    "--learning_rate": "lr",
    "--per_device_train_batch_size": "b",
    "--max_steps": "n",
    "--zo_eps": "eps",
    "--zo_num_directions": "d",
    "--train_on_answers_only": "answers",
    "--weight_decay": "wd",
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
        variant: goes into the name, if the task alone does not say which data it is.
    """

    method: str
    task: Task
    parts: str = "lm"
    seed: int = 0
    flags: dict[str, str] = field(default_factory=dict)
    split: str = "test"
    variant: str = ""

    @property
    def name(self) -> str:
        """What the run's folder is called."""
        flags = [f"{SHORT.get(flag, flag.strip('-'))}{value}" for flag, value in self.flags.items()]
        words = [self.task.name, self.variant, self.method, self.parts, *flags, f"s{self.seed}"]
        return "-".join(word for word in [*words, "" if self.split == "test" else self.split] if word)


def usual_run(
    options: argparse.Namespace, method: str, task: Task, parts: str = "lm", seed: int = 0, **changes: Any
) -> Run:
    """A run at the study's settings, with the task's learning rate.

    Args:
        changes: flags of train.py that differ; `split` and `variant` as for `Run`.
    """
    steps = options.steps if method == "mezo" and options.steps else STEPS[method]
    flags = {"--learning_rate": rate(options, method, task), "--max_steps": str(steps)}
    more = {name: changes.pop(name) for name in ("split", "variant") if name in changes}
    flags |= {f"--{name}": str(value) for name, value in changes.items()}
    return Run(method, task, parts, seed, flags, **more)


def run_all(runs: Sequence[Run], options: argparse.Namespace, deadline: float | None = None) -> list[Path]:
    """Do the runs that are missing; returns the folders of all that are finished, in order.

    Args:
        deadline: `time.time()` after which no further run is started; those left out are said.

    A run whose loss diverged counts as done, with `FAILED_FILE` in place of a report, and is not in the result.
    Any other failure ends the process once the runs that are under way are through, with the end of its log.
    """
    runs = list({run.name: run for run in runs}.values())
    pool = (options.output / "runs").resolve()
    missing = [run for run in runs if not is_done(pool / run.name)]
    for task, split in dict.fromkeys((run.task, run.split) for run in missing):
        _zero_shot(task, split, options)
    slots: queue.Queue[int] = queue.Queue()
    for slot in range(options.jobs):
        slots.put(slot)
    failures, skipped = [], 0
    with ThreadPoolExecutor(options.jobs) as executor, tqdm(total=len(missing), desc="runs", unit="run") as bar:
        futures = {executor.submit(_run, run, pool / run.name, options, slots, deadline): run for run in missing}
        for future in as_completed(futures):
            outcome = future.result()
            if outcome is None:
                skipped += 1
            elif outcome.startswith("failed"):
                failures.append(f"{futures[future].name}: {outcome}")
                for waiting in futures:
                    waiting.cancel()
            bar.update(outcome is not None)
            if outcome is not None:
                tqdm.write(f"{futures[future].name}: {outcome}")
            if failures:
                break
    if failures:
        sys.exit("error: " + "\n".join(failures))
    if skipped:
        sys.stderr.write(f"{skipped} runs left for the next call: the budget is used up\n")
    return [pool / run.name for run in runs if (pool / run.name / "report.json").exists()]


def is_done(folder: Path) -> bool:
    """Whether a run has been evaluated, or diverged."""
    return (folder / FAILED_FILE).exists() or report_of(folder).get("accuracy_after") is not None


def report_of(folder: Path) -> dict[str, Any]:
    """report.json of a run's folder; empty without one."""
    file = folder / "report.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def zero_shot_accuracy(task: Task, split: str, options: argparse.Namespace) -> float:
    """Accuracy of the model before training, 0..1."""
    return json.loads(_zero_shot(task, split, options).with_suffix(".json").read_text(encoding="utf-8"))["accuracy"]


def _zero_shot(task: Task, split: str, options: argparse.Namespace) -> Path:
    """The answers of the model before training, made once for all runs."""
    answers = (options.output / "zero_shot" / f"{task.name}-{split}" / "eval_before.jsonl").resolve()
    answers.parent.mkdir(parents=True, exist_ok=True)
    words = ["--model-path", model_of(options), "--data", str(task.file(split)), "--output", str(answers)]
    words += ["--metric", "exact", "--batch-size", "16", "--version", "qwen_1_5", "--image-folder", str(task.images)]
    if not answers.with_suffix(".json").exists():
        subprocess.run([sys.executable, "-m", "llava.eval.accuracy", *words], check=True)
    return answers


def model_of(options: argparse.Namespace) -> str:
    """The checkpoint that the runs start from."""
    return options.model or MODELS[options.preset]


def _run(
    run: Run, folder: Path, options: argparse.Namespace, slots: queue.Queue[int], deadline: float | None
) -> str | None:
    """One run in a slot of its own; what came of it, or None when the time is up."""
    if deadline is not None and time.time() > deadline:
        return None
    slot = slots.get()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        answers = _zero_shot(run.task, run.split, options)
        for file in (answers, answers.with_suffix(".json")):
            if not (folder / file.name).exists():
                shutil.copy(file, folder / file.name)
        begin = time.perf_counter()
        with (folder / "log.txt").open("a", encoding="utf-8") as log:
            environment = _environment(run, folder, options, slot)
            code = subprocess.run(command(run, options), env=environment, stdout=log, stderr=log).returncode
    finally:
        slots.put(slot)
    if code not in (0, EXIT_DIVERGED):
        end = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")[-1500:]
        return f"failed with exit code {code}, see {folder / 'log.txt'}: ...{end}"
    if code == EXIT_DIVERGED:
        (folder / FAILED_FILE).write_text(json.dumps({"exit_code": code}) + "\n", encoding="utf-8")
    if not options.keep_models:
        _remove_weights(folder)
    if code == EXIT_DIVERGED:
        return "the loss diverged"
    return f"{100 * report_of(folder)['accuracy_after']:.1f} % in {(time.perf_counter() - begin) / 60:.1f} minutes"


def command(run: Run, options: argparse.Namespace) -> list[str]:
    """The words of the run's command."""
    flags = [word for flag, value in run.flags.items() for word in (flag, value)]
    flags += ["--seed", str(run.seed), "--zo_seed", str(run.seed)]
    if "vision" in run.parts:
        flags += ["--mm_vision_tower_lr", run.flags["--learning_rate"]]
    else:
        flags += ["--mm_feature_cache", str((options.output / "features").resolve())]
    if options.preset == "demo":
        flags += ["--image_aspect_ratio", "square"]  # a drawing is one tile; anyres would show it twice
    script = ROOT / "scripts" / "train" / f"{run.method}_onevision_si.sh"
    return ["bash", str(script), options.preset, *flags]


def _environment(run: Run, folder: Path, options: argparse.Namespace, slot: int) -> dict[str, str]:
    given = {
        "MODEL": model_of(options),
        "DATA_PATH": str(run.task.file("train")),
        "IMAGE_FOLDER": str(run.task.images),
        "EVAL_DATA": str(run.task.file(run.split)),
        "OUTPUT_DIR": str(folder),
        "MM_TUNABLE_PARTS": PARTS[run.parts],
        "PYTHON": sys.executable,
    }
    if torch.cuda.is_available():
        given["CUDA_VISIBLE_DEVICES"] = str(slot % torch.cuda.device_count())
    elif options.jobs > 1:
        given["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // options.jobs))
    return {**os.environ, **given}


def _remove_weights(folder: Path) -> None:
    """Free the space of a finished run's weights; what the report needs stays."""
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    for file in folder.glob("*.safetensors"):
        file.unlink()

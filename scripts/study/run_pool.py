"""Do the runs of an experiment: several at a time, none of them twice.

All experiments share one pool of runs, `OUTPUT/runs/NAME`. A run that is there is not repeated, and one that was
interrupted goes on where it was. Each leaves its report, its losses, its answers, its log and (MeZO) its journal;
weights are removed unless --keep_models is given.
"""

from __future__ import annotations

import argparse
import json
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from planned_run import Run, environment_of, words_of
from settings import METRIC, Task, model_of
from tqdm.auto import tqdm

from llava.errors import EXIT_DIVERGED, InputError
from llava.runs.report import write
from llava.runs.run_folder import remove_weights

DIVERGED_FILE = "diverged.json"
POOL_FILE = "pool.json"
LOG_TAIL = 1500  # characters of a failed run's log that are shown


class Pool:
    """The runs of one model below `options.output`.

    Raises:
        InputError: the pool there is of another model, or has a task of this name with other data.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.folder = (options.output / "runs").resolve()
        self._slots: queue.Queue[int] = queue.Queue()
        for slot in range(options.jobs):
            self._slots.put(slot)
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stop = threading.Event()

    def page(
        self,
        runs: Sequence[Run],
        name: str,
        title: str,
        deadline: float | None = None,
        more: Callable[[], Sequence[str]] | None = None,
    ) -> str:
        """Do the runs that are missing, and write the page `OUTPUT/name.md` about all of them; returns its text.

        `more` gives lines that stand below what `llava.runs.report` tells.
        """
        folders = self.do(runs, deadline)
        diverged = [run.name for run in runs if (self.folder / run.name / DIVERGED_FILE).exists()]
        notes = [f"The loss diverged, and no row has it: {name}." for name in dict.fromkeys(diverged)]
        if not folders:
            raise InputError(f"no run of {len(runs)} has finished; {' '.join(notes) or 'raise --budget'}")
        page = self.options.output / f"{name}.md"
        text = write(folders, page, title, notes)
        if more is not None:
            text += "\n" + "\n".join(more()) + "\n"
            page.write_text(text, encoding="utf-8")
        return text

    def do(self, runs: Sequence[Run], deadline: float | None = None) -> list[Path]:
        """Do the runs that are missing; returns the folders of all that are finished, in order.

        Args:
            deadline: `time.time()` after which no further run is started; how many are left is said.

        A run whose loss diverged counts as done, with `DIVERGED_FILE` in place of a report, and is not in the result.
        After any other failure no run is started, and the process ends with the end of the failed run's log.
        """
        runs = list({run.name: run for run in runs}.values())
        self._check_same(runs)
        missing = [run for run in runs if not self.is_done(run)]
        for task, split in dict.fromkeys((run.task, run.split) for run in missing):
            self.zero_shot(task, split)
        before = signal.signal(signal.SIGTERM, self._end_children)
        try:
            self._do_missing(missing, deadline)
        finally:
            signal.signal(signal.SIGTERM, before)
        return [self.folder / run.name for run in runs if self.accuracy(run) is not None]

    def _do_missing(self, missing: Sequence[Run], deadline: float | None) -> None:
        failures, left = [], 0
        executor = ThreadPoolExecutor(self.options.jobs)
        try:
            futures = {executor.submit(self._run, run, deadline): run for run in missing}
            with tqdm(total=len(missing), desc="runs", unit="run") as bar:
                for future in as_completed(futures):
                    outcome, failed = future.result()
                    left += outcome is None
                    if failed:
                        failures.append(f"{futures[future].name}: {outcome}")
                        self._stop.set()
                    elif outcome is not None:
                        bar.update()
                        tqdm.write(f"{futures[future].name}: {outcome}")
        except KeyboardInterrupt:  # the runs have the signal too, save and end
            sys.exit("interrupted; the same command goes on from here")
        finally:
            self._stop.set()
            executor.shutdown(cancel_futures=True)
            self._stop.clear()
        if failures:
            sys.exit("error: " + "\n".join(failures))
        if left:
            sys.stderr.write(f"{left} runs left for the next call: the budget is used up\n")

    def _run(self, run: Run, deadline: float | None) -> tuple[str | None, bool]:
        """One run in a slot of its own: what came of it (None: not begun), and whether it failed."""
        slot = self._slots.get()
        try:
            if self._stop.is_set() or (deadline is not None and time.time() > deadline):
                return None, False
            folder, begin = self.folder / run.name, time.perf_counter()
            folder.mkdir(parents=True, exist_ok=True)
            self._copy_zero_shot(run, folder)
            with (folder / "log.txt").open("ab") as log:
                code = self._process(words_of(run, self.options), environment_of(run, folder, self.options, slot), log)
            if code == EXIT_DIVERGED:
                (folder / DIVERGED_FILE).write_text(json.dumps({"exit_code": code}) + "\n", encoding="utf-8")
            elif code:
                end = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")[-LOG_TAIL:]
                return f"exit code {code}, see {folder / 'log.txt'}: ...{end}", True
            if not self.options.keep_models:
                remove_weights(folder)
            minutes = (time.perf_counter() - begin) / 60
            accuracy = self.accuracy(run)
            what = "the loss diverged" if accuracy is None else f"{100 * accuracy:.1f} %"
            return f"{what}, {minutes:.1f} minutes", False
        finally:
            self._slots.put(slot)

    def _process(self, words: Sequence[str], environment: dict[str, str], log: Any) -> int:
        process = subprocess.Popen(words, env=environment, stdout=log, stderr=log)
        self._running.add(process)
        try:
            return process.wait()
        finally:
            self._running.discard(process)

    def _end_children(self, *signal_and_frame: Any) -> None:
        self._stop.set()
        for process in list(self._running):
            process.terminate()
        raise KeyboardInterrupt

    def is_done(self, run: Run) -> bool:
        """Whether a run has been evaluated, or diverged."""
        return (self.folder / run.name / DIVERGED_FILE).exists() or self.accuracy(run) is not None

    def accuracy(self, run: Run) -> float | None:
        """Accuracy after a run, 0..1; None if it is not finished or diverged."""
        return self.report(run).get("accuracy_after")

    def report(self, run: Run) -> dict[str, Any]:
        """The report.json of a run; empty until it has trained."""
        return _read(self.folder / run.name / "report.json")

    def zero_shot_accuracy(self, task: Task, split: str) -> float:
        """Accuracy of the model before training, 0..1."""
        return _read(self.zero_shot(task, split).with_suffix(".json"))["accuracy"]

    def zero_shot(self, task: Task, split: str) -> Path:
        """The answers of the model before training, made once for all runs."""
        answers = self.folder.parent / "zero_shot" / f"{task.name}-{split}" / "eval_before.jsonl"
        answers.parent.mkdir(parents=True, exist_ok=True)
        words = self.evaluation(task, split, answers)
        if not _read(answers.with_suffix(".json")).get("complete"):
            code = subprocess.run(words).returncode
            if code:
                sys.exit(code)  # it has said why
        return answers

    def evaluation(self, task: Task, split: str, answers: Path) -> list[str]:
        """The words of a command that evaluates the model before training; flags that follow may name another."""
        words = [sys.executable, "-m", "llava.eval.accuracy", "--model-path", model_of(self.options)]
        words += ["--data", str(task.file(split)), "--image-folder", str(task.images), "--output", str(answers)]
        return [*words, "--metric", METRIC, "--batch-size", "16", "--version", "qwen_1_5"]

    def _copy_zero_shot(self, run: Run, folder: Path) -> None:
        if "--bits" in run.flags:
            return  # it begins with other weights, and answers for itself
        answers = self.zero_shot(run.task, run.split)
        for file in (answers, answers.with_suffix(".json")):
            shutil.copy(file, folder / file.name)

    def _check_same(self, runs: Sequence[Run]) -> None:
        """Note the model and the tasks' folders in the pool, or compare them with what is noted."""
        file = self.folder.parent / POOL_FILE
        given = {"model": self.options.model or self.options.preset}
        given |= {f"task {run.task.name}": str(run.task.folder) for run in runs}
        noted = _read(file)
        for name, value in given.items():
            if noted.setdefault(name, value) != value:
                raise InputError(
                    f"--output {self.options.output}: the runs there are of another {name} ({noted[name]}, "
                    f"now {value}); choose another folder"
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(noted, indent=2) + "\n", encoding="utf-8")


def _read(file: Path) -> dict[str, Any]:
    """A JSON object; empty without the file."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InputError(f"{file}: cannot be read ({error}); remove its folder to run it again") from error

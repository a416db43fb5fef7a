"""Finished runs read back from their folders, and grouped: what `llava.runs.report` tells about them."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava.errors import InputError
from llava.runs.plots import loss_points
from llava.runs.run_report import ARGUMENTS_FILE, REPORT_FILE, STATE_FILE

ANSWERS_FILE = "eval_after.json"
SEEDS = ("seed", "zo_seed", "data_seed")
# Flags that make two runs different experiments, in the order of the columns. Those of the engine say nothing of AdamW.
SETTINGS = (
    "model_name_or_path",
    "mm_tunable_parts",
    "tunable_layers",
    "freeze_vectors",
    "adapter",
    "learning_rate",
    "lr_scheduler_type",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_steps",
    "weight_decay",
    "train_on_answers_only",
    "stratify_answers",
    "bf16",
    "evaluation",  # no flag: the file and the metric of the accuracy after training
)
ZO_SETTINGS = (
    "zo_objective",
    "zo_estimator",
    "zo_rule",
    "zo_eps",
    "zo_num_directions",
    "zo_noise",
    "zo_tensor_scales",
    "zo_batch_growth",
    "zo_weight_storage",
)
OLDER = {"stratify_answers": "off", "zo_objective": "loss"}
"""What runs did that were made before there was such a flag."""
FORWARDS = {"spsa": 2, "lowrank": 2, "one_point": 1}
"""Of a record for each direction, of the estimators where that is all."""
METHODS = {"zo": "MeZO", "regular": "AdamW"}


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        folder: its output folder.
        task: name of its data, see `task_name`.
        report: report.json.
        settings: value of each of `SETTINGS` and, for MeZO, `ZO_SETTINGS`.
        seeds: value of each of `SEEDS`.
        steps: where the loss was logged.
        samples_per_step: records of all devices; None where it changes on the way (`--zo_batch_growth`).
        forwards_per_sample: of a record in a step, None where that depends on more than the estimator's name; AdamW's
            one has a backward pass as well.
        losses: mean training loss since the entry before, as long as `steps`.
    """

    folder: Path
    task: str
    report: Mapping[str, Any]
    settings: Mapping[str, Any]
    seeds: tuple[Any, ...]
    steps: Sequence[int]
    samples_per_step: int | None
    forwards_per_sample: int | None
    losses: Sequence[float]

    @property
    def method(self) -> str:
        """MeZO or AdamW."""
        return METHODS.get(self.report["trainer_mode"], self.report["trainer_mode"])

    @property
    def gain(self) -> float | None:
        """Accuracy after training minus before, a share as they are; None without an evaluation."""
        before, after = self.report["accuracy_before"], self.report["accuracy_after"]
        return None if before is None or after is None else after - before


NUMBERS = ("steps", "accuracy_before", "accuracy_after", "final_loss", "seconds_per_step", "peak_memory_bytes")
"""Fields of report.json that pages reckon with."""


@dataclass
class Group:
    """Runs that differ in nothing but their seeds."""

    task: str
    method: str
    settings: Mapping[str, Any]
    runs: list[Run] = field(default_factory=list)

    def mean(self, name: str) -> float | None:
        """Mean of a number of report.json over the runs; None unless all of them have it."""
        return _mean([run.report.get(name) for run in self.runs])

    def spread(self, name: str) -> float | None:
        """Standard deviation (n - 1) of it over the runs; None for one run, or without all numbers."""
        values: list[Any] = [run.report.get(name) for run in self.runs]
        return None if None in values or len(values) < 2 else statistics.stdev(values)

    @property
    def gain(self) -> float | None:
        """Mean gain."""
        return _mean([run.gain for run in self.runs])


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return statistics.mean(present) if present and len(present) == len(values) else None


def read_run(folder: Path) -> Run:
    """The run of an output folder.

    Raises:
        InputError: the folder holds no finished run; the missing or unreadable file is named.
    """
    report, arguments, state = (_read(folder / name) for name in (REPORT_FILE, ARGUMENTS_FILE, STATE_FILE))
    _check_fields(folder / REPORT_FILE, report)
    names = SETTINGS + (ZO_SETTINGS if report.get("trainer_mode") == "zo" else ())
    arguments.setdefault("adapter", "lora" if arguments.get("lora_enable") else "none")
    arguments |= {name: value for name, value in OLDER.items() if arguments.get(name) is None}
    arguments["evaluation"] = _evaluation(folder / ANSWERS_FILE)
    try:
        steps, losses = loss_points(state.get("log_history", ()))
    except (TypeError, ValueError) as error:
        raise InputError(f"{folder / STATE_FILE}: its log_history is not the log of a run ({error})") from error
    return Run(
        folder=folder,
        task=task_name(arguments.get("data_path") or ""),
        report=report,
        settings={name: arguments.get(name) for name in names},
        seeds=tuple(arguments.get(name) for name in SEEDS),
        steps=steps,
        samples_per_step=samples_per_step(arguments),
        forwards_per_sample=_forwards_per_sample(arguments) if report.get("trainer_mode") == "zo" else 1,
        losses=losses,
    )


def _check_fields(path: Path, report: Mapping[str, Any]) -> None:
    """`InputError` for a report that was edited to what no run writes."""
    for name in ("trainer_mode", *NUMBERS):
        value = report.get(name)
        if name not in report or not isinstance(value, str if name == "trainer_mode" else (int, float, type(None))):
            expected = "a text" if name == "trainer_mode" else "a number or null"
            found = f"has {value!r:.80} under" if name in report else "lacks"
            raise InputError(f"{path}: {found} {name!r}, which must be {expected}; was it edited?")


def samples_per_step(arguments: Mapping[str, Any]) -> int | None:
    """Records of a step over all devices and micro-batches, of the flags of a run; None where it changes on the way."""
    if arguments.get("zo_batch_growth"):
        return None
    processes = arguments.get("data_processes") or arguments.get("world_size")  # runs of before have the latter alone
    sizes = (arguments.get(name) for name in ("per_device_train_batch_size", "gradient_accumulation_steps"))
    return math.prod(size or 1 for size in (*sizes, processes))


def _forwards_per_sample(arguments: Mapping[str, Any]) -> int | None:
    directions = int(arguments.get("zo_num_directions") or 1)
    ends = FORWARDS.get(arguments.get("zo_estimator") or "spsa")
    return None if ends is None else ends * directions


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path.parent}: no finished run there, {path.name} is missing") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: must hold a JSON object")
    return content


def _evaluation(path: Path) -> str | None:
    """What a run was evaluated on, and how; None if it was not."""
    if not path.exists():
        return None
    summary = _read(path)
    return f"{Path(summary['settings']['data']).name}, {summary.get('metric')}"


def task_name(data_path: str) -> str:
    """What a run's data is called: the file's name or, for the usual names of a split, its folder's."""
    path = Path(data_path)
    return path.parent.name if path.stem in ("train", "val", "test") and path.parent.name else path.stem


def grouped(runs: Iterable[Run]) -> list[Group]:
    """Runs that differ in seeds alone together, in order of first appearance, AdamW's groups of a task first.

    Raises:
        InputError: two runs of a group have the same seeds too, so that one would count twice.
    """
    groups: dict[tuple[Any, ...], Group] = {}
    for run in runs:
        key = (run.task, run.method, *run.settings.items())
        group = groups.setdefault(key, Group(run.task, run.method, run.settings))
        twin = next((other for other in group.runs if other.seeds == run.seeds), None)
        if twin is not None:
            raise InputError(f"{run.folder} and {twin.folder}: equal settings and seeds; give one of them")
        group.runs.append(run)
    order = list(dict.fromkeys(group.task for group in groups.values()))
    return sorted(groups.values(), key=lambda group: (order.index(group.task), group.method != "AdamW"))


def varying(groups: Sequence[Group]) -> list[str]:
    """The settings that tell groups of one method apart; each is worth a column."""
    by_method = [[group for group in groups if group.method == method] for method in {g.method for g in groups}]
    return [
        name
        for name in SETTINGS + ZO_SETTINGS
        if any(len({_told_apart_by(name, group) for group in alike}) > 1 for alike in by_method)
    ]


def _told_apart_by(name: str, group: Group) -> str:
    """A model by its name alone: the same one may lie in several places."""
    value = group.settings.get(name)
    return Path(str(value)).name if name == "model_name_or_path" else repr(value)


def share_of_adamw(group: Group, groups: Sequence[Group]) -> float | None:
    """The group's gain by that of AdamW on the same task, model, parts and evaluation; of several, the best counts.

    None for AdamW itself, without AdamW, and where AdamW gains nothing.
    """
    same = ("model_name_or_path", "mm_tunable_parts", "adapter", "evaluation")
    gains = [
        other.gain
        for other in groups
        if other.method == "AdamW"
        and other.task == group.task
        and all(other.settings.get(name) == group.settings.get(name) for name in same)
        and other.gain is not None
    ]
    if group.method == "AdamW" or group.gain is None or not gains or max(gains) <= 0:
        return None
    return group.gain / max(gains)


def rise_after_minimum(losses: Sequence[float]) -> float | None:
    """How far the smoothed loss rises above its minimum later on: the largest later mean by the smallest, minus one.

    Smoothed is the mean of the last tenth of all points, of whole windows alone. None with fewer than ten points, or
    where the minimum is zero.
    """
    if len(losses) < 10:
        return None
    window = round(0.1 * len(losses))
    means = [statistics.mean(losses[k : k + window]) for k in range(len(losses) - window + 1)]
    lowest = min(range(len(means)), key=means.__getitem__)
    return max(means[lowest:]) / means[lowest] - 1 if means[lowest] > 0 else None

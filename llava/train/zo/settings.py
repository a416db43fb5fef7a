"""What MeZO takes of a run's flags, and which flags it cannot honour.

Used by the command line, before a model is loaded, and by MeZOTrainer.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

from llava.mezo.algorithms.choice import ESTIMATORS, RULES
from llava.mezo.algorithms.course import Course
from llava.mezo.algorithms.interface import Settings as AlgorithmSettings
from llava.mezo.config import KERNEL_DEVICES, MOST_DIRECTIONS, NOISES, MeZOConfig
from llava.mezo.errors import InputError, JournalError
from llava.mezo.ranks import Ranks
from llava.train.zo.step_batches import Growth

logger = logging.getLogger(__name__)

CLASSIFICATION = "classification"
"""The objective that is the cross entropy among the answers of the training set."""
ON_DIVERGENCE = ("warn", "stop", "halve", "off")


@dataclass(frozen=True)
class Settings:
    """A run's flags of MeZO, read once.

    Training arguments that lack some of them (other trainers keep no journal) mean these defaults.
    """

    config: MeZOConfig
    """Of the engine."""
    journal: bool = False
    from_journal: str | None = None
    journal_sync_steps: int | None = None
    objective: str = "loss"
    batch_growth: str | None = None
    anchor_batches: int = 1
    """How many usual steps' records a step at an anchor has."""
    on_divergence: str = "warn"
    probe_steps: int = 0
    """After how many steps slope and curvature are measured, see `probing.py`; 0: never."""

    @classmethod
    def of(cls, args: Any) -> Settings:
        """From training arguments, as transformers has them or as they stand on the command line.

        Raises:
            InputError: a value out of range, or two that do not go together.
        """
        own = {n: getattr(args, f"zo_{n}", d) for n, d in _defaults(cls) if n != "config"}
        engine = {n: getattr(args, flag_of(n), d) for n, d in _defaults(MeZOConfig)}
        if own["on_divergence"] not in ON_DIVERGENCE:
            raise InputError(f"--zo_on_divergence {own['on_divergence']}: allowed are {', '.join(ON_DIVERGENCE)}")
        if engine["estimator"] == "per_example":
            engine["num_directions"] = examples = examples_of_a_step(args)
            if not 2 <= examples <= MOST_DIRECTIONS:
                raise InputError(
                    "--zo_estimator per_example takes the spread over the records of a step, of which there must be at "
                    f"least 2 and at most {MOST_DIRECTIONS}, and it has {examples}: change "
                    "--per_device_train_batch_size"
                )
        for name in ("journal_sync_steps", "anchor_batches"):
            if own[name] is not None and own[name] < 1:
                raise InputError(f"--zo_{name} {own[name]} must be at least 1")
        if own["probe_steps"] < 0:
            raise InputError(f"--zo_probe_steps {own['probe_steps']} must be at least 0 (never)")
        if own["probe_steps"] and own["objective"] not in ("loss", CLASSIFICATION):
            raise InputError(
                f"--zo_probe_steps {own['probe_steps']} excludes --zo_objective {own['objective']}, a count, which has "
                "no slope or curvature: leave one of them out"
            )
        if engine["estimator"] != "svrg":
            own["anchor_batches"] = 1
        try:
            config = MeZOConfig(**engine)
        except ValueError as error:
            raise InputError(_in_flags(str(error), engine)) from error
        return cls(config, **own)

    def ranks(self, count: int | None = None) -> Ranks:
        """This process's place among those of the run.

        Args:
            count: of the processes, where they are not there yet; then the first one's place.

        Raises:
            InputError: a step has less to share out than there are processes.
        """
        config = self.config
        shared = config.parallel, config.num_directions
        ranks = Ranks.here(*shared) if count is None else Ranks.of(0, count, *shared)
        points = len(Course(config).points(0))
        if ranks.point_ways > points:
            raise InputError(
                f"--zo_parallel {config.parallel}: {ranks.count} processes cannot share out the {points} losses that a "
                "step takes of a batch. Raise --zo_num_directions, or give both or data"
            )
        return ranks

    def planned_rows(self, args: Any) -> list[int] | None:
        """Records of each step of a run, over all processes, where steps differ; None where they do not.

        Raises:
            InputError: a step that cannot be shared out to the processes evenly.
        """
        growth, anchor = self.batch_growth, self.anchor_batches
        if growth is None and anchor == 1:
            return None
        begun = getattr(args, "begun", None)
        shares = self.ranks().rows if begun is None else begun.processes
        stages = Growth(((0.0, args.train_batch_size * shares),)) if growth is None else Growth.parse(growth)
        rows = stages.rows(args.max_steps)
        odd = [count for count in rows if count % shares]
        if odd:
            raise InputError(
                f"--zo_batch_growth {growth}: {odd[0]} records cannot be shared out evenly to {shares} processes"
            )
        return [count if step % self.config.anchor_steps else count * anchor for step, count in enumerate(rows)]

    def check_plan(self, args: Any, records: int) -> None:
        """Whether a run can have the steps that are planned; before a model is loaded.

        Args:
            args: as transformers has them.
            records: of the data.

        Raises:
            InputError: as `planned_rows`, or a step has more records than there are.
        """
        rows, growth = self.planned_rows(args), self.batch_growth
        if rows is None:
            return
        if max(rows) > records:
            flags = [] if growth is None else [f"--zo_batch_growth {growth}"]
            flags += [f"--zo_anchor_batches {self.anchor_batches}"] if self.anchor_batches > 1 else []
            raise InputError(
                f"{' with '.join(flags)}: a step would have {max(rows)} records, some of them twice, since --data_path "
                f"has {records}. Give fewer records a step"
            )
        stages = () if growth is None or self.anchor_batches > 1 else Growth.parse(growth).stages
        for never in {count for _, count in stages} - set(rows):
            logger.warning("--zo_batch_growth %s: no step of %d has %d records", growth, args.max_steps, never)


_CHOSEN = re.compile(
    r"\b(?:the )?(estimator|rule|noise|num_directions)(?= (?:is |\d|(?:"
    + "|".join((*ESTIMATORS, *RULES, *NOISES))
    + r")\b))"
)


def _in_flags(text: str, settings: Collection[str]) -> str:
    """What the engine says of its settings, with the flags in their place."""
    name, _, rest = text.partition(" ")
    if name in settings:
        text = f"--{flag_of(name)} {rest.removeprefix('is ')}"
    return _CHOSEN.sub(lambda match: f"--{flag_of(match[1])}", text)


@contextmanager
def in_flags() -> Iterator[None]:
    """Within it, what the engine says of a setting that does not fit the weights has the flag in its place."""
    try:
        yield
    except JournalError:
        raise
    except InputError as error:
        raise InputError(_in_flags(str(error), [name for name, _ in _defaults(MeZOConfig)])) from error


def flag_of(setting: str) -> str:
    """The flag of one of the engine's settings."""
    return "zo_weight_storage" if setting == "storage" else f"zo_{setting}"


def check_kernel(kernel: str, device_type: str) -> None:
    """`InputError` where the kernel does not run on a device of this type ("cpu", "cuda", ...), or is not installed."""
    devices = KERNEL_DEVICES[kernel]
    if devices is not None and device_type not in devices:
        raise InputError(
            f"--zo_kernel {kernel} runs on {', '.join(devices)} alone, and this run is on {device_type}: leave it out"
        )
    if kernel in ("numba", "triton") and importlib.util.find_spec(kernel) is None:
        raise InputError(f"--zo_kernel {kernel} needs {kernel}: pip install {kernel}, or leave it out")


def settings_without_effect(config: MeZOConfig) -> list[str]:
    """Those of the engine's settings that its estimator and rule do not read: they take a few steps to show it."""
    watched: Any = _Watched(config)
    course = Course(watched)
    for step in range(3):
        losses = [1.0] * len(course.points(step))
        losses += [1.0] * len(course.further_points(step, losses))
        course.take(course.propose(step, losses))
    _ = course.estimator.kernel_noise
    return [name for name in vars(AlgorithmSettings) if not name.startswith("_") and name not in watched.read]


class _Watched:
    """Settings that note which of them are read."""

    def __init__(self, config: MeZOConfig) -> None:
        self._config = config
        self.read: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.read.add(name)
        return getattr(self._config, name)


def _defaults(kind: type) -> list[tuple[str, Any]]:
    return [(one.name, one.default) for one in fields(kind)]


def examples_of_a_step(args: Any) -> int:
    """Over all processes; `args` as transformers has them, or as they stand on the command line."""
    rows = getattr(args, "train_batch_size", args.per_device_train_batch_size)
    if getattr(args, "begun", None) is not None:
        return int(rows * args.begun.micro_batches)
    return int(rows * args.gradient_accumulation_steps * processes(args))


def processes(args: Any) -> int:
    """Of a run; `args` as in `examples_of_a_step`."""
    return getattr(args, "world_size", None) or int(os.environ.get("WORLD_SIZE", 1))


def refuse_impossible(args: Any) -> None:
    """Raise `InputError` when a flag excludes `--trainer_mode zo`, or is out of its range.

    Args:
        args: as for `Settings.of`.
    """
    zo = Settings.of(args)
    if args.fp16:
        raise InputError(
            "--fp16 True (autocast, loss scaling) excludes --trainer_mode zo: use --bf16 True, or neither for float32"
        )
    if args.label_smoothing_factor:
        raise InputError(
            f"--label_smoothing_factor {args.label_smoothing_factor} excludes --trainer_mode zo, whose loss is the "
            "cross entropy: leave it out"
        )
    if args.auto_find_batch_size:
        raise InputError(
            "--auto_find_batch_size True excludes --trainer_mode zo, which needs no more memory than a forward"
        )
    if args.save_only_model and zo.journal:
        raise InputError(
            "--save_only_model True excludes --zo_journal True, which resumes from whole checkpoints: leave it out, or "
            "--save_strategy steps, since the journal gives every step"
        )
    if zo.from_journal is not None and not zo.journal:
        raise InputError("--zo_from_journal needs --zo_journal True: the new run's journal goes on from the other one")
    if zo.on_divergence == "halve":
        _refuse_with_halving(args, zo)
    _refuse_batches(args, zo)
    for name in ("deepspeed", "fsdp", "torch_compile"):
        if getattr(args, name):
            raise InputError(
                f"--{name} excludes --trainer_mode zo: zeroth-order steps perturb the weights module by "
                "module. Leave it out"
            )


def _refuse_with_halving(args: Any, zo: Settings) -> None:
    """What cannot go with a run that goes back and halves its rate."""
    if not zo.journal:
        raise InputError("--zo_on_divergence halve needs --zo_journal True: the run goes back by its journal")
    if args.lr_scheduler_type == "reduce_lr_on_plateau":
        raise InputError(
            "--lr_scheduler_type reduce_lr_on_plateau excludes --zo_on_divergence halve: both lower the rate. Give a "
            "schedule that is a function of the step, or warn, stop or off"
        )


def _refuse_batches(args: Any, zo: Settings) -> None:
    """What an estimator, or a plan of batches, cannot go with."""
    estimator, growth = zo.config.estimator, zo.batch_growth
    planned = "--zo_batch_growth" if growth is not None else "--zo_anchor_batches" if zo.anchor_batches > 1 else None
    if growth is not None:
        Growth.parse(growth)
    if planned and args.max_steps < 1:
        raise InputError(f"{planned} needs --max_steps: it plans the records of every step")
    if planned and args.gradient_accumulation_steps > 1:
        raise InputError(
            f"{planned} excludes --gradient_accumulation_steps {args.gradient_accumulation_steps}: a step's records "
            "are taken in parts of --per_device_train_batch_size already"
        )
    if planned and estimator in ("per_example", "guided"):
        raise InputError(f"{planned} excludes --zo_estimator {estimator}, whose steps have one batch of one size")
    if estimator == "per_example" and args.zo_num_directions != 1:
        raise InputError(
            f"--zo_num_directions {args.zo_num_directions} excludes --zo_estimator per_example, which has a direction "
            "for each record of a step: leave it out"
        )
    if estimator == "per_example" and not args.dataloader_drop_last:
        raise InputError(
            "--zo_estimator per_example needs --dataloader_drop_last True: every step has as many records, a direction "
            "for each"
        )
    if estimator in ("per_example", "guided") and args.gradient_accumulation_steps > 1:
        raise InputError(
            f"--gradient_accumulation_steps {args.gradient_accumulation_steps} excludes --zo_estimator {estimator}, "
            "which takes a step's records as one batch: raise --per_device_train_batch_size"
        )
    if estimator == "svrg" and args.weight_decay:
        raise InputError(f"--weight_decay {args.weight_decay} excludes --zo_estimator svrg, which takes updates back")

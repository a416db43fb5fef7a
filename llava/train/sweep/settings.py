"""What all trials of a sweep share: the flags of their command, their metric, and what is refused before any starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llava.errors import InputError
from llava.model.own_settings import read_config
from llava.runs.validation import LOSS
from llava.train.flags.parsing import Arguments, parse_arguments
from llava.train.flags.preflight import check_paths, check_records, check_validation
from llava.train.parts.tunable import VISION_TOWER, parse_parts
from llava.train.sweep.space import Parameter, parse_space

METRICS = ("accuracy", "loss")
TRIALS, FEATURES = "trials", "features"
"""Folders of a sweep: of its trials, and of the features of images that they share."""


@dataclass(frozen=True)
class Sweep:
    """A sweep as it was asked for.

    Attributes:
        space: what is varied.
        flags: words of train.py that all trials have, the validation and its metric among them.
        metric: the metric that trials are compared by, a value of `--eval_metric`.
        folder: where all of it lies.
        best_counts: trials are compared by the best point of their curves, whose weights they keep
            (`--load_best_model_at_end True`), in place of the last one.
    """

    space: tuple[Parameter, ...]
    flags: tuple[str, ...]
    metric: str
    folder: Path
    best_counts: bool

    @classmethod
    def of(cls, space: str, metric: str, flags: Sequence[str], folder: Path) -> Sweep:
        """From a command line, checked as a run's flags are.

        Raises:
            InputError: unknown flags, values out of range, no validation data, or flags that a sweep sets itself.
        """
        parameters = tuple(parse_space(space))
        names = {word.split("=", 1)[0].lstrip("-") for word in flags if word.startswith("--")}
        for name in ("output_dir", "overwrite_output_dir", "resume_from_checkpoint"):
            if name in names:
                raise InputError(f"--{name} is set by the sweep for each trial: leave it out; --output is its folder")
        twice = [one.name for one in parameters if one.name in names]
        if twice:
            raise InputError(f"--{twice[0]} is in --space and among the flags: leave out one of them")
        if "eval_data_path" not in names:
            raise InputError("--eval_data_path is missing: trials are compared on records that they are not trained on")
        if "eval_metric" not in names:
            flags = (*flags, "--eval_metric", "exact" if metric == "accuracy" else LOSS)
        return cls(parameters, tuple(flags), metric, folder, False)._settled(names)

    def _settled(self, names: set[str]) -> Sweep:
        """With what the flags say, all values of the space tried out on the flags' own parser."""
        first = {one.name: one.ends()[0] for one in self.space}
        model_args, data_args, training_args = self._parsed(first)
        if (training_args.eval_metric == LOSS) != (self.metric == LOSS):
            raise InputError(
                f"--metric {self.metric} excludes --eval_metric {training_args.eval_metric}: leave out the latter, or "
                "give the metric that it means"
            )
        check_paths(model_args, data_args, training_args)
        check_records(data_args, training_args, 1)
        check_validation(data_args, training_args)
        for one in self.space:
            for value in one.ends()[1:]:
                self._parsed({**first, one.name: value})
        flags = self.flags
        sees = model_args.vision_tower or read_config(model_args.model_name_or_path).get("mm_vision_tower")
        if "mm_feature_cache" not in names and sees and not self._trains_vision(model_args):
            flags = (*flags, "--mm_feature_cache", str(self.folder / FEATURES))
        best = bool(training_args.load_best_model_at_end)
        return replace(self, flags=flags, metric=training_args.eval_metric, best_counts=best)

    def _parsed(self, values: Mapping[str, str]) -> Arguments:
        """The flags of a trial."""
        arguments = parse_arguments(self.words(values, self.folder))
        if arguments[2].zo_on_divergence == "halve":
            raise InputError("--zo_on_divergence halve: a sweep ends trials that diverge itself; leave it out")
        return arguments

    def _trains_vision(self, model_args: Any) -> bool:
        """Whether the tower is trained, in some trial or by older flags: features then are nobody else's."""
        varied = [value for one in self.space if one.name == "mm_tunable_parts" for value in one.choices]
        given = [model_args.mm_tunable_parts] if model_args.mm_tunable_parts else []
        parts = [part for value in given + varied for part in parse_parts(value)]
        return VISION_TOWER in parts or bool(getattr(model_args, "unfreeze_mm_vision_tower", False))

    @property
    def greater_is_better(self) -> bool:
        """Of the metric."""
        return self.metric != LOSS

    def words(self, values: Mapping[str, str], folder: Path) -> list[str]:
        """The words of train.py for a trial with these values in `folder`."""
        own = [word for name, value in values.items() for word in (f"--{name}", value)]
        return [*self.flags, *own, "--output_dir", str(folder)]

    def value(self, points: Mapping[int, float | None]) -> float | None:
        """What a finished trial is compared by, of its curve; None if that is not finite."""
        if not points:
            return None
        finite = [value for value in points.values() if value is not None]
        if not self.best_counts:
            return points[max(points)]
        return (max if self.greater_is_better else min)(finite) if finite else None

    def described(self) -> dict[str, Any]:
        """What a sweep that goes on has to have again."""
        space: dict[str, list[Any]] = {
            one.name: list(one.choices or (one.low, one.high, "log" if one.log else "uniform")) for one in self.space
        }
        return {"space": space, "flags": list(self.flags), "metric": self.metric}

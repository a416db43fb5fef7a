"""The validation curve of a run: OUTPUT_DIR/validation.json, written anew with each point.

A run that goes on takes from it what was measured before it was stopped, so that nothing is measured twice, and which
step is the best, and how long ago that was, follow from the points alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava.errors import InputError
from llava.mezo.durable import write_durably
from llava.model.checkpoint_files import read_json, usable

CURVE_FILE = "validation.json"
LOSS = "loss"
"""The one metric of which less is better."""


@dataclass
class Curve:
    """A metric of a validation set at some steps of a run.

    Attributes:
        metric: value of `--eval_metric`.
        data: value of `--eval_data_path`.
        sha256: of its files.
        points: by step, in their order; None where the value was not finite.
        weights_of_step: the step that the saved model is of, once the run is over.
    """

    metric: str
    data: str
    sha256: Sequence[str]
    points: dict[int, float | None] = field(default_factory=dict)
    weights_of_step: int | None = None

    @property
    def greater_is_better(self) -> bool:
        """Of the metric."""
        return self.metric != LOSS

    def add(self, step: int, value: float) -> None:
        """A new point."""
        self.points[step] = value if math.isfinite(value) else None

    def forget_after(self, step: int) -> None:
        """Drop what was measured after that step, which is taken again."""
        self.points = {one: value for one, value in self.points.items() if one <= step}

    def best_step(self, until: int | None = None) -> int | None:
        """The step of the best value, of equal ones the first; None without any value.

        Args:
            until: points after this step do not count.
        """
        sign = 1 if self.greater_is_better else -1
        values = {step: sign * value for step, value in self._until(until).items() if value is not None}
        return max(values, key=lambda step: (values[step], -step)) if values else None

    def since_best(self, until: int | None = None) -> int:
        """How many points came after the best one."""
        best = self.best_step(until)
        return sum(best is None or step > best for step in self._until(until))

    def _until(self, step: int | None) -> dict[int, float | None]:
        return {one: value for one, value in self.points.items() if step is None or one <= step}

    def report(self) -> dict[str, Any]:
        """What report.json says of it."""
        best = self.best_step()
        return {
            "metric": self.metric,
            "data": self.data,
            "best_step": best,
            "best": None if best is None else self.points[best],
            "weights_of_step": self.weights_of_step,
            "history": [{"step": step, "value": value} for step, value in sorted(self.points.items())],
        }

    def save(self, folder: Path) -> None:
        """Write the file, whole or not at all."""
        values = {"metric": self.metric, "data": self.data, "data_sha256": list(self.sha256)}
        history = [{"step": step, "value": value} for step, value in sorted(self.points.items())]
        write_durably(folder / CURVE_FILE, json.dumps(values | {"history": history}, indent=2) + "\n")

    def take_up(self, folder: Path, until: int, changes: bool) -> None:
        """The points of the run that goes on in `folder`.

        Args:
            until: steps that are not taken again.
            changes: whether another metric or other records are wanted (`--resume_with_changes`); the curve then begins
                anew.

        Raises:
            InputError: the file is damaged, or of another metric or other records.
        """
        file = folder / CURVE_FILE
        if not file.exists():
            return
        values = read_json(file)
        with usable(str(file)):
            earlier = Curve(values["metric"], values["data"], values["data_sha256"])
            earlier.points = {int(point["step"]): point["value"] for point in values["history"]}
        earlier.forget_after(until)
        same = (earlier.metric, list(earlier.sha256)) == (self.metric, list(self.sha256))
        if not earlier.points or (changes and not same):
            return
        now = "give these again, --resume_with_changes True to begin a new curve, or another --output_dir"
        if earlier.metric != self.metric:
            raise InputError(f"{file} is by --eval_metric {earlier.metric} (now {self.metric}): {now}")
        if not same:
            raise InputError(f"{file} is of other records than those in --eval_data_path {self.data} now: {now}")
        self.points = earlier.points

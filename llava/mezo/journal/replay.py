"""Weights at any step of a run, from its base model and its journal.

    python -m llava.mezo.replay --model-path BASE --journal OUTPUT_DIR/mezo_journal --output-dir OUT [--step N]
    python -m llava.mezo.replay ... --every K          OUT/step-K, OUT/step-2K, ... and the last step

writes an ordinary checkpoint with the weights that the run had after N steps (default: all), bit for bit, whatever
device, kernel or number of processes either used. Only updates are applied, for a perturbation leaves no trace; each
part of a weight takes all steps while it is in the cache, so a step costs what its noise costs. Needs the trained
weights in memory. BASE is a local folder or a hub id; the journal knows its fingerprint and refuses any other. Of a run
that trained an adapter or another part that BASE lacks, the journal has the start, and nothing of BASE is read.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from llava.mezo.algorithms.course import Course
from llava.mezo.command_line import Parser
from llava.mezo.errors import JournalError
from llava.mezo.journal.base_model import BaseModel, folder_of
from llava.mezo.journal.files import Journal
from llava.mezo.journal.fingerprint import fingerprint
from llava.mezo.journal.header import Header
from llava.mezo.journal.records import Record, updates_of
from llava.mezo.new_folder import check_new, new_folder
from llava.mezo.trained import TrainedWeights
from llava.mezo.weights import Storage, store

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_NOTES = 10.0
STEPS_AT_ONCE = 64
"""Steps that go over a part of the weights while it is in the cache."""


def apply_records(header: Header, records: Sequence[Record], weights: TrainedWeights, course: Course) -> None:
    """Apply what `records` did to the weights, some steps in one pass over them; `course` is that of those before."""
    updates, noted = list(updates_of(header, records, course)), time.monotonic()
    for first in range(0, len(updates), STEPS_AT_ONCE):
        weights.update(updates[first : first + STEPS_AT_ONCE])
        if time.monotonic() - noted > SECONDS_BETWEEN_NOTES:
            noted = time.monotonic()
            done = min(first + STEPS_AT_ONCE, len(updates))
            logger.info("mezo: %d of %d steps applied to the weights", done, len(updates))


def group_numbers(header: Header) -> list[int]:
    """Of each trained parameter, the number of its group."""
    group_of = {number: group for group, one in enumerate(header.groups) for number in one.parameters}
    return [group_of[number] for number in range(len(header.names))]


@dataclass
class _Stretch:
    """The weights of one journal of a chain on their way through its records."""

    journal: Journal
    storages: dict[str, Storage]
    weights: TrainedWeights
    course: Course
    step: int = 0


class Replay:
    """The weights of a run at one step after the other.

        replay = Replay(journal, read)
        replay.advance(1000)
        replay.weight("model.norm.weight")

    `read` gives the base model's weight of a canonical name, in the run's dtype (`header.dtypes`) and on the device
    that is to compute; it is changed in place where it can be. JournalError: the base is not that of the journal.
    """

    def __init__(self, journal: Journal, read: Callable[[str], torch.Tensor], kernel: str = "auto") -> None:
        self.kernel = kernel
        self._weights: dict[str, torch.Tensor] = {}
        self._read = read
        *earlier, last = journal.chain()
        for one, following in zip(earlier, journal.chain()[1:], strict=True):
            stretch = self._enter(one)
            parent = following.header.parent
            self._advance(stretch, parent.steps if parent is not None else 0)
            self._weights.update({name: s.exported() for name, s in stretch.storages.items()})
        self._stretch = self._enter(last)

    @property
    def step(self) -> int:
        """Steps of the journal that the weights have taken."""
        return self._stretch.step

    def advance(self, step: int) -> None:
        """Go on to the weights after `step` steps. ValueError: these are behind, or not in the journal."""
        self._advance(self._stretch, step)

    def weight(self, name: str) -> torch.Tensor:
        """The weight of a canonical name, trained in this run or in one that it branched off from."""
        storage = self._stretch.storages.get(name)
        return self._weights[name] if storage is None else storage.exported()

    @torch.no_grad()
    def copy_into(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Write all weights that were trained into a model's parameters, by canonical name."""
        for name in self.names:
            weight, parameter = self.weight(name), parameters[name]
            if weight.data_ptr() != parameter.data_ptr():  # it may be the very parameter that was read
                parameter.copy_(weight)

    @property
    def names(self) -> list[str]:
        """Canonical names of what this run, or one that it branched off from, trained."""
        return list(dict.fromkeys([*self._stretch.storages, *self._weights]))

    def _enter(self, journal: Journal) -> _Stretch:
        header = journal.header
        values = {name: self._weights.pop(name) if name in self._weights else self._read(name) for name in header.names}
        for name, dtype, shape in zip(header.names, header.dtypes, header.shapes, strict=True):
            value = values[name] = values[name].to(getattr(torch, dtype))
            if tuple(value.shape) != shape:
                raise JournalError(
                    f"{journal.folder}: {name} has shape {list(shape)} there and {list(value.shape)} in the given model"
                )
        found = fingerprint(values)
        if found != header.fingerprint:
            raise JournalError(
                f"{journal.folder} starts from {header.model} with the fingerprint {header.fingerprint}; the "
                f"given model has {found}. Give the one that the run was started with"
            )
        storages = {}
        for name in header.names:  # a weight that is stored otherwise leaves memory at once
            storages[name] = store(nn.Parameter(values.pop(name), requires_grad=False), header.storage)
        course = Course(header)
        noise, groups = course.estimator.kernel_noise, group_numbers(header)
        weights = TrainedWeights(list(storages.values()), noise, self.kernel, groups, header.sizes)
        return _Stretch(journal, storages, weights, course)

    def _advance(self, stretch: _Stretch, step: int) -> None:
        records = stretch.journal.records
        if not stretch.step <= step <= len(records):
            raise ValueError(
                f"step {step} is asked for; the journal has {len(records)}, of which {stretch.step} are applied"
            )
        apply_records(stretch.journal.header, records[stretch.step : step], stretch.weights, stretch.course)
        stretch.step = step


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", required=True, metavar="BASE", help="base model: a folder or a hub id")
    parser.add_argument("--journal", required=True, type=Path, metavar="DIR", help="OUTPUT_DIR/mezo_journal")
    parser.add_argument("--output-dir", required=True, type=Path, metavar="OUT", help="must not exist, or be empty")
    parser.add_argument("--step", type=int, metavar="N", help="weights after N steps (default: all of the journal)")
    parser.add_argument("--every", type=int, metavar="K", help="also after K, 2K, ... steps, each in a folder of OUT")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        run(options)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def run(options: argparse.Namespace) -> None:
    """Write what the command was asked for."""
    journal = Journal.read(options.journal)
    last = len(journal.records) if options.step is None else options.step
    if not 0 <= last <= len(journal.records):
        raise JournalError(f"--step {last}: {options.journal} has the steps 0 to {len(journal.records)}")
    if options.every is not None and options.every < 1:
        raise JournalError(f"--every {options.every}: it must be at least 1")
    check_new(options.output_dir, "--output-dir")
    missing = f"--model-path {options.model_path}: no such folder with a model, and no hub id that can be fetched"
    try:
        folder = folder_of(options.model_path, download=True)
    except (OSError, ValueError) as error:
        raise JournalError(f"{missing} ({str(error).splitlines()[0]})") from error
    if folder is None:
        raise JournalError(missing)
    base = BaseModel(folder, journal)
    replay = Replay(journal, lambda name: base.read(name).to(options.device))
    dtypes = set(journal.header.dtypes)
    dtype = getattr(torch, dtypes.pop()) if len(dtypes) == 1 else None
    for step in sorted({last, *range(options.every or last, last, options.every or 1)} if last else {0}):
        begin = time.monotonic()
        count = step - replay.step
        replay.advance(step)
        target = options.output_dir / f"step-{step}" if options.every else options.output_dir
        with new_folder(target, "--output-dir") as folder:
            base.write(folder, replay.names, replay.weight, dtype)
        logger.info("%s: step %d (%d steps in %.1f s)", target, step, count, time.monotonic() - begin)


if __name__ == "__main__":
    sys.exit(main())

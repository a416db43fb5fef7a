"""The four ways that a file of records goes: training, the check before it, accuracy, model_vqa; without weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import torch

from llava.check import command as check
from llava.check.record_checks import RecordChecker
from llava.check.survey import Place
from llava.check.text import report_lines
from llava.check.without_weights import prepare_data_arguments
from llava.errors import InputError
from llava.eval import model_vqa
from llava.eval.generation import Answerer, Decoding
from llava.eval.scoring import evaluate
from llava.samples.collator import DataCollatorForSupervisedDataset
from llava.samples.dataset import LazySupervisedDataset
from llava.samples.loading import load_file, load_parts
from llava.samples.settings import SampleSettings

TINY = Path(__file__).parents[2] / "playground" / "tiny-llava-onevision"
LONGEST_LINE = 600
T = TypeVar("T")


@dataclass
class Outcome:
    """What came of it: what was made, or one line for what was refused."""

    made: Any = None
    refused: list[str] = field(default_factory=list)


def attempt(run: Callable[[], T]) -> Outcome:
    """Any other error than an InputError is a fault, and is raised."""
    try:
        return Outcome(made=run())
    except InputError as error:
        return Outcome(refused=[one_line(str(error))])


def one_line(text: str) -> str:
    """The text, if it can be shown on one line."""
    assert text.isprintable() and len(text) < LONGEST_LINE, text
    return text


class FourWays:
    """Of data below a folder, with the tiny checkpoint's tokenizer and image processor."""

    def __init__(self, folder: Path, **flags: str) -> None:
        words = [str(folder / "none.json"), "--model-path", str(TINY)]
        words += ["--image-folder", str(folder), "--video-folder", str(folder)]
        words += [f"--{name}={value}" for name, value in flags.items()]
        model_args, self.data_args, training_args = check._run_arguments(check._parser().parse_args(words))
        self.tokenizer = prepare_data_arguments(model_args, self.data_args, training_args)
        self.folder = folder
        self.model = SimpleNamespace(
            config=SimpleNamespace(
                image_aspect_ratio=self.data_args.image_aspect_ratio,
                image_grid_pinpoints=self.data_args.image_grid_pinpoints,
            ),
            device=torch.device("cpu"),
            dtype=torch.float32,
            generate=lambda ids, **rest: torch.zeros(len(ids), 1, dtype=torch.long),
            modules=lambda: [],
            training=False,
        )

    def training(self, file: Path, **changes: Any) -> Outcome:
        """Its items, each collated."""

        def run() -> list[Any]:
            arguments = SimpleNamespace(**(vars(self.data_args) | changes))
            data = LazySupervisedDataset(str(file), self.tokenizer, arguments)
            items = [data[number] for number in range(len(data))]
            for item in items:
                DataCollatorForSupervisedDataset(self.tokenizer)([item])
            return items

        return attempt(run)

    def check(self, file: Path) -> Outcome:
        """Its verdicts; what it refuses is what it lists as problems."""

        def run() -> list[Any]:
            records = [record for _, part in load_parts(file) for record in part]
            checker = RecordChecker(self.tokenizer, SampleSettings.of(self.data_args), True)
            findings, verdicts = check.Findings(False), []
            for number, raw in enumerate(records):
                verdicts.append(checker.check(raw, number))
                findings.add(Place(str(file), number, raw.get("id")), raw, verdicts[-1])
            report = {"files": [], "unlike_checkpoint": [], "lengths_checked": True, "lengths": None}
            report |= findings.report()
            json.dumps(report, ensure_ascii=False).encode(errors="backslashreplace")
            for line in report_lines(report, 5):
                one_line(line)
            return verdicts

        found = attempt(run)
        found.refused += [one_line(p.message) for verdict in found.made or [] for p in verdict.problems]
        return found

    def accuracy(self, file: Path) -> Outcome:
        def run() -> list[Any]:
            parts = self.model, self.tokenizer, self.data_args.image_processor
            answers = evaluate(*parts, load_file(file), self.folder, progress=False)["answers"]
            json.dumps(answers, ensure_ascii=False).encode()
            return answers

        return attempt(run)

    def model_vqa(self, file: Path) -> Outcome:
        def run() -> list[Any]:
            answerer = Answerer(self.model, self.tokenizer, self.data_args.image_processor, image_mode="square")
            given = str(self.folder), Decoding(4), ""
            lines = [
                model_vqa._line(record, *round_, "model")
                for number, record in enumerate(load_file(file))
                for round_ in model_vqa.ask(answerer, record, *given, number)
            ]
            json.dumps(lines, ensure_ascii=False).encode()
            return lines

        return attempt(run)

"""Look over LLaVA JSON before a long run: would training take every record, and what is in them?

    python -m llava.data.check train.json --image-folder D --model-path M --version qwen_1_5 --model-max-length 1792

The data may be given in every form that `--data_path` takes, and several at once. Flags that change how records are
read are those of train.py, with its defaults: give those of the run. The verdict about a record is training's own,
through the same code. Of the model only config and tokenizer are read; without --model-path the lengths are left out.
`--output report.json` lists everything, the text `--show` of each kind.

Exit codes: 0 training would go through, 1 it would fail on a record, 2 wrong flags or unreadable files.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm
from transformers.hf_argparser import string_to_bool

from llava.check.lengths import summarise
from llava.check.record_checks import PROBLEMS, RecordChecker, Verdict
from llava.check.stand_in_tokenizer import StandInTokenizer
from llava.check.survey import Place, Survey
from llava.check.text import report_lines
from llava.check.without_weights import prepare_data_arguments
from llava.errors import EXIT_BAD_INPUT, InputError, command_with
from llava.mezo.command_line import Parser
from llava.mezo.durable import write_durably
from llava.model.checkpoint_kind import check_checkpoint
from llava.model.own_settings import read_config
from llava.samples.loading import JsonRecord, Parts, load_parts
from llava.samples.record import record_name
from llava.samples.settings import SampleSettings
from llava.train.flags.arguments import DataArguments, ModelArguments, TrainingArguments
from llava.train.flags.from_checkpoint import take_from_checkpoint
from llava.train.flags.parsing import parse_arguments

EXIT_WOULD_FAIL = 1
MOST_FREQUENT = 10
# Flags of train.py that change how records are read.
RUN_FLAGS = (
    *("image_folder", "video_folder", "version", "model_max_length", "train_on_answers_only"),
    *("image_aspect_ratio", "image_grid_pinpoints", "mm_patch_merge_type", "vision_tower"),
    *("mm_vision_select_feature", "mm_use_im_start_end", "mm_use_im_patch_token", "use_template_system_prompt"),
    *("video_fps", "frames_upbound", "force_sample", "add_time_instruction", "mm_newline_position"),
    *("image_window", "max_image_pixels"),
    *("mm_spatial_pool_stride", "mm_spatial_pool_mode", "add_faster_video", "faster_token_stride", "seed"),
)

Sets = list[tuple[str, Parts]]


class _Parser(Parser):
    """Says in one line what is wrong with the flags."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_BAD_INPUT, f"error: {message}; --help lists all flags\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m llava.data.check", description="Look over LLaVA JSON before a long run.")
    parser.add_argument("files", nargs="+", metavar="FILE", help="what --data_path takes: x.json, hf:NAME, ...")
    parser.add_argument("--model-path", help="checkpoint of the run, for the lengths; its weights are not read")
    parser.add_argument("--output", type=Path, metavar="JSON", help="write the whole report to this file")
    parser.add_argument("--show", type=int, default=20, metavar="N", help="list so many of each kind of finding")
    classes = (ModelArguments, DataArguments, TrainingArguments)
    fields = {field.name: field for kind in classes for field in dataclasses.fields(kind)}
    for name in RUN_FLAGS:
        how: dict[str, Any] = {"help": str(fields[name].metadata.get("help", "as for train.py")).replace("%", "%%")}
        if "bool" in str(fields[name].type):
            how |= {"type": string_to_bool, "nargs": "?", "const": True, "metavar": "BOOL"}
        elif "list[float]" in str(fields[name].type):
            how |= {"type": float, "nargs": 2, "metavar": ("LOW", "HIGH")}
        elif "int" in str(fields[name].type):
            how |= {"type": int}
        parser.add_argument(f"--{name.replace('_', '-')}", f"--{name}", dest=name, **how)
    return parser


def _run_arguments(arguments: argparse.Namespace) -> tuple[ModelArguments, DataArguments, TrainingArguments]:
    """The arguments of a run with these flags, parsed and checked as train.py does."""
    given = {name: getattr(arguments, name) for name in RUN_FLAGS if getattr(arguments, name) is not None}
    given |= {"data_path": arguments.files[0]}
    if arguments.model_path is None:
        given.setdefault("version", "qwen_1_5")
    else:
        given["model_name_or_path"] = arguments.model_path
    words: list[str] = []
    for name, value in given.items():
        words += [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}={value}"]
    run = parse_arguments(words)
    take_from_checkpoint(*run[:2], {} if arguments.model_path is None else read_config(arguments.model_path))
    return run


def _check_flags(arguments: argparse.Namespace) -> None:
    if arguments.show < 0:
        raise InputError(f"--show {arguments.show} must be at least 0")
    for flag, folder in (("--image-folder", arguments.image_folder), ("--video-folder", arguments.video_folder)):
        if folder is not None and not Path(folder).is_dir():
            raise InputError(f"{flag} {folder}: no such folder")
    if arguments.output is not None and not arguments.output.absolute().parent.is_dir():
        raise InputError(f"--output {arguments.output}: no such folder; choose a file in a folder that exists")
    if arguments.model_path is not None:
        check_checkpoint(arguments.model_path, None, weights=False)


def _load(files: list[str], seed: int) -> Sets:
    """The records of every FILE, file by file; all are read before the first record is checked."""
    sets = [(path, load_parts(path, seed)) for path in files]
    for path, parts in sets:
        if not any(records for _, records in parts):
            raise InputError(f"{path} holds no records to train on")
    return sets


def _checker(arguments: argparse.Namespace, run: tuple[Any, Any, Any]) -> RecordChecker:
    model_args, data_args, training_args = run
    if arguments.model_path is not None:
        tokenizer = prepare_data_arguments(model_args, data_args, training_args)
        return RecordChecker(tokenizer, SampleSettings.of(data_args), True)
    data_args.image_processor = object()  # a model with images is assumed; only lengths need to know which
    return RecordChecker(StandInTokenizer(), SampleSettings.of(data_args), False)


class Findings:
    """Collects verdicts into a report."""

    def __init__(self, several_sets: bool) -> None:
        self.survey = Survey()
        self.problems: dict[str, list[dict[str, Any]]] = {kind: [] for kind in PROBLEMS}
        self.warnings: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.lengths: list[int] = []
        self.records = self.failing = 0
        self._several_sets = several_sets

    def add(self, place: Place, raw: JsonRecord, verdict: Verdict) -> None:
        """Take the verdict about one record."""
        self.records += 1
        self.failing += bool(verdict.problems)
        self.survey.add(place, raw, verdict.record)
        if verdict.length is not None:
            self.lengths.append(verdict.length)
        for problem in verdict.problems:
            what = {"message": problem.message} | ({} if problem.path is None else {"path": problem.path})
            self.problems[problem.kind].append(self._named(place) | what)
        for kind, message in verdict.warnings:
            self.warnings[kind].append(self._named(place) | {"message": message})

    def _named(self, place: Place) -> dict[str, Any]:
        name = record_name(place.id, place.number)
        return {"record": f"{place.data}: {name}" if self._several_sets else name, **place.as_dict()}

    def report(self) -> dict[str, Any]:
        """Everything that was found, as it is written to `--output`, without the settings."""
        survey = self.survey
        frequent = survey.answers.most_common(MOST_FREQUENT)
        total = survey.answers.total()
        return {
            "records": self.records,
            "would_fail": self.failing,
            "turns": survey.turns,
            "kinds": dict(survey.kinds),
            "problems": {kind: {"what": PROBLEMS[kind], "found": found} for kind, found in self.problems.items()},
            "warnings": dict(self.warnings),
            "same_id": self._groups(survey.same_id),
            "identical": self._groups(survey.identical),
            "contradicting": self._groups(survey.contradicting),
            "answers": {
                "total": total,
                "distinct": len(survey.answers),
                "most_frequent": [{"answer": answer, "count": count} for answer, count in frequent],
                "rest": total - sum(count for _, count in frequent),
            },
            "empty_answers": [self._named(place) for place in survey.empty_answers],
        }

    def _groups(self, groups: list[list[Place]]) -> list[list[dict[str, Any]]]:
        return [[self._named(place) for place in group] for group in groups]


def check(arguments: argparse.Namespace) -> dict[str, Any]:
    """The report about the records of `arguments.files`, see `Findings.report`; with `settings`, `files`, `lengths`."""
    _check_flags(arguments)
    run = _run_arguments(arguments)
    sets = _load(arguments.files, run[2].seed)
    checker = _checker(arguments, run)
    findings = Findings(len(sets) > 1)
    total = sum(len(records) for _, parts in sets for _, records in parts)
    with tqdm(total=total, desc="checking", unit="record") as bar:
        for path, parts in sets:
            for number, raw in enumerate(raw for _, records in parts for raw in records):
                findings.add(Place(path, number, raw.get("id")), raw, checker.check(raw, number))
                bar.update()
    lengths, limit = findings.lengths, run[2].model_max_length
    return {
        "settings": _settings(arguments, run),
        "files": [
            {"data": path, "file": file, "records": len(records)} for path, parts in sets for file, records in parts
        ],
        **findings.report(),
        "lengths_checked": arguments.model_path is not None,
        "lengths": summarise(lengths, limit) if lengths else None,
    }


def _settings(arguments: argparse.Namespace, run: tuple[Any, Any, Any]) -> dict[str, Any]:
    """The flags that were used, given or not."""
    values = {name: getattr(part, name) for name in RUN_FLAGS for part in run if hasattr(part, name)}
    return {"model_path": arguments.model_path, **values}


@command_with(_parser)
def main(argv: list[str] | None = None) -> None:
    """Entry point, see the module's docstring."""
    arguments = _parser().parse_intermixed_args(argv)
    report = check(arguments)
    if arguments.output is not None:
        try:
            write_durably(arguments.output, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        except OSError as error:
            raise InputError(f"--output {arguments.output}: cannot write there ({error})") from error
    sys.stdout.write("\n".join(report_lines(report, arguments.show)) + "\n")
    if report["would_fail"]:
        sys.exit(EXIT_WOULD_FAIL)


if __name__ == "__main__":
    main()

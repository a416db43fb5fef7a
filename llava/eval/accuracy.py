"""Accuracy of a model on a LLaVA JSON set, by greedy decoding.

    python -m llava.eval.accuracy --model-path M --data test.json --image-folder D --output answers.jsonl

prints total, correct and accuracy and writes them, with the settings, to answers.json beside the answers. Called again
after an interruption it continues where it stopped. `--metric` is exact (default), choice or relaxed, see
`llava.eval.metrics`; the reference of a record is its last answer. `--bits 4|8` quantises as training with that flag
does: the model or, with `--model-base`, the base, beside whose layers an adapter then stays.

    python -m llava.eval.accuracy --journal RUN/mezo_journal --step 500 --data ...
    python -m llava.eval.accuracy --journal RUN/mezo_journal --all-steps 500 --data ... --output steps.jsonl

evaluates steps of a MeZO run without writing a model; the second form leaves an answers file for each step, and
accuracy against steps in steps.json and steps.png.

    python -m llava.eval.accuracy --shots 4 --shots-data train.json --shots-seed 0 --model-path M --data ...

is in-context learning: four answered records of the training set stand before each question (`llava.eval.shots`).
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.conversation import get_template
from llava.errors import InputError, command_with, naming
from llava.eval.answers_file import AnswersFile, model_identity
from llava.eval.journaled import JournaledModel
from llava.eval.loading_flags import add_loading_flags, load, quantised
from llava.eval.metrics import METRICS, metric_named
from llava.eval.questions import record_id
from llava.eval.scoring import check_field, evaluate, grouped
from llava.eval.shots import Demonstration, draw
from llava.mezo.command_line import Parser
from llava.mezo.durable import write_durably
from llava.model.checkpoint_kind import check_checkpoint
from llava.model.own_settings import template_of
from llava.runs.plots import plot_accuracy
from llava.samples.answers import different_answers
from llava.samples.loading import file_sha256, load_file
from llava.samples.pictures import PictureSettings
from llava.samples.record import read_record


def _counts(result: Mapping[str, Any]) -> str:
    return f"total {result['total']}  correct {result['correct']}  accuracy {result['accuracy']:.4f}"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description="Accuracy of a LLaVA model on a LLaVA JSON set.")
    parser.add_argument("--model-path", help="checkpoint folder or hub id; with --journal: the run's base model")
    parser.add_argument("--model-base", help="language model that a LoRA or projector-only checkpoint belongs to")
    parser.add_argument("--journal", type=Path, metavar="DIR", help="mezo_journal of a run: evaluate a step of it")
    parser.add_argument("--step", type=int, metavar="N", help="of the journal; default: its last")
    parser.add_argument("--all-steps", type=int, metavar="K", help="steps 0, K, 2K, ... N, with a picture")
    parser.add_argument(
        "--data", type=Path, required=True, help="records with answers: x.json, x.jsonl, x.parquet, hf:NAME"
    )
    parser.add_argument("--image-folder", type=Path, default=Path(), help="image paths are below it; default: .")
    parser.add_argument("--metric", default="exact", help=f"one of {', '.join(METRICS)}")
    parser.add_argument("--batch-size", type=int, default=8, help="records answered together")
    parser.add_argument("--version", help="conversation template; default: the checkpoint's own")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    add_loading_flags(parser)
    parser.add_argument("--shots", type=int, default=0, metavar="K", help="answered records before each question")
    parser.add_argument("--shots-data", help="the records that they are drawn from; not --data itself")
    parser.add_argument("--shots-seed", type=int, help="draws them, once for all questions; default: 0")
    parser.add_argument("--answers-of", metavar="DATA", help="only whole answers of these records are given")
    parser.add_argument("--output", type=Path, required=True, help="answers, a .jsonl file")
    parser.add_argument("--group-by", help="also give the accuracy for every value of this field of the records")
    parser.add_argument("--overwrite", action="store_true", help="drop the answers that are in --output")
    return parser


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "model_path": arguments.model_path,
        "model_base": arguments.model_base,
        "model": None if arguments.model_path is None else model_identity(arguments.model_path),
        "data": str(arguments.data),
        "data_sha256": file_sha256(arguments.data),
        "image_folder": str(arguments.image_folder),
        "version": arguments.version,
        "max_new_tokens": arguments.max_new_tokens,
        "torch_dtype": arguments.torch_dtype,
        "image_window": arguments.image_window,
        **({"shots": _shots_identity(arguments)} if arguments.shots else {}),
        **({"answers_sha256": file_sha256(arguments.answers_of)} if arguments.answers_of else {}),
    }


def _shots_identity(arguments: argparse.Namespace) -> dict[str, Any]:
    """What decides the demonstrations."""
    file = arguments.shots_data
    return {"number": arguments.shots, "seed": arguments.shots_seed or 0, "data_sha256": file_sha256(file)}


def _demonstrations(arguments: argparse.Namespace) -> list[Demonstration]:
    """Those that the flags ask for."""
    if not arguments.shots:
        for flag, value in (("--shots-data", arguments.shots_data), ("--shots-seed", arguments.shots_seed)):
            if value is not None:
                raise InputError(f"{flag} has no effect without --shots K")
        return []
    if arguments.shots_data is None:
        raise InputError(f"--shots {arguments.shots} needs --shots-data, the records to draw from: the training set")
    records = load_file(arguments.shots_data, "--shots-data")
    if file_sha256(arguments.shots_data) == file_sha256(arguments.data):
        raise InputError("--shots-data is --data: its answers would stand before its questions; give the training set")
    with naming(arguments.shots_data):
        return draw(records, arguments.shots, arguments.shots_seed or 0, arguments.image_folder)


def _choices(arguments: argparse.Namespace) -> list[str]:
    """The answers that the flags allow; none: all."""
    if arguments.answers_of is None:
        return []
    records = load_file(arguments.answers_of, "--answers-of")
    with naming(f"--answers-of {arguments.answers_of}"):
        return different_answers(read_record(record, number) for number, record in enumerate(records))


@command_with(_parser)
def main(argv: list[str] | None = None) -> None:
    """Entry point, see the module's docstring."""
    arguments = _parser().parse_args(argv)
    metric_named(arguments.metric)
    for name in ("batch_size", "max_new_tokens"):
        if getattr(arguments, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(arguments, name)} must be at least 1")
    if arguments.version is not None:
        get_template(arguments.version)
    if not arguments.image_folder.is_dir():
        raise InputError(f"--image-folder {arguments.image_folder}: no such folder")
    records = load_file(arguments.data, "--data")
    if arguments.group_by is not None:
        check_field(records, arguments.group_by)
    arguments.demonstrations = _demonstrations(arguments)
    arguments.choices = _choices(arguments)
    PictureSettings.of(arguments)  # refused before anything is loaded
    run, bits = _journaled(arguments), quantised(arguments)
    if run is not None:
        _evaluate_steps(run, arguments, records)
        return
    check_checkpoint(arguments.model_path, arguments.model_base)  # before a file of answers is begun
    arguments.version = arguments.version or template_of(arguments.model_path, arguments.model_base)

    settings = _settings(arguments) | {name: value.to_dict() for name, value in bits.items()}
    _evaluate_into(arguments.output, settings, arguments, records, functools.partial(load, arguments))


def _evaluate_steps(run: JournaledModel, arguments: argparse.Namespace, records: Sequence[Mapping[str, Any]]) -> None:
    """One step of a journal, or several with a table and a picture."""
    check_checkpoint(run.path, None)
    arguments.version = arguments.version or run.template()
    load_once = functools.cache(lambda: run.load(arguments.attn_implementation))
    several, results = arguments.all_steps is not None, []
    for step in _steps(arguments, run):
        output = arguments.output
        if several:
            output = output.with_name(f"{output.stem}-step-{step}{output.suffix}")
            sys.stdout.write(f"step {step:>7}  ")

        def load(step: int = step) -> tuple[Any, Any, Any]:
            loaded = load_once()
            run.go_to(step)
            return loaded

        settings = _settings(arguments) | {"model_path": run.path, "journal": run.journal.checksums[step], "step": step}
        results.append({"step": step, **_evaluate_into(output, settings, arguments, records, load)})
    if several:
        table = arguments.output.with_suffix(".json")
        write_durably(table, json.dumps(results, indent=2) + "\n")
        plot_accuracy(results, arguments.output.with_suffix(".png"))


def _journaled(arguments: argparse.Namespace) -> JournaledModel | None:
    """The run whose steps are evaluated, if the flags name one."""
    run = JournaledModel.named_by(arguments)
    of_a_run = arguments.step is not None or arguments.all_steps is not None
    if run is None and (arguments.model_path is None or of_a_run):
        raise InputError("give --model-path, or --journal with --step N or --all-steps K")
    return run


def _steps(arguments: argparse.Namespace, run: JournaledModel) -> list[int]:
    """The steps that are asked for, in order; the last one of the journal by default."""
    last = run.step_of(arguments.step)
    if arguments.all_steps is None:
        return [last]
    if arguments.all_steps < 1:
        raise InputError(f"--all-steps {arguments.all_steps} must be at least 1")
    return sorted({*range(0, last, arguments.all_steps), last})


def _evaluate_into(
    output: Path,
    settings: dict[str, Any],
    arguments: argparse.Namespace,
    records: Sequence[Mapping[str, Any]],
    load: Callable[[], tuple[Any, Any, Any]],
) -> dict[str, Any]:
    """Answer the records into a file, going on where it ends, and print the counts; returns the summary."""
    ids = [record_id(record, k) for k, record in enumerate(records)]
    file = AnswersFile(output, settings, ids, arguments.overwrite)
    loaded = load()
    with file:
        with naming(str(arguments.data)):
            result = evaluate(
                *loaded,
                records,
                arguments.image_folder,
                metric=arguments.metric,
                batch_size=arguments.batch_size,
                version=arguments.version,
                max_new_tokens=arguments.max_new_tokens,
                pictures=PictureSettings.of(arguments),
                demonstrations=arguments.demonstrations,
                choices=arguments.choices,
                done=file.done,
                on_batch=file.append,
            )
        summary = {name: result[name] for name in ("total", "correct", "accuracy", "metric")}
        groups = {} if arguments.group_by is None else grouped(records, result["answers"], arguments.group_by)
        file.finish(summary | ({"groups": groups} if groups else {}))
    for name, group in groups.items():
        sys.stdout.write(f"{name:<16} {_counts(group)}\n")
    sys.stdout.write(_counts(result) + "\n")
    return summary


if __name__ == "__main__":
    main()

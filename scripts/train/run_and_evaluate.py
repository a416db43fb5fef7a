"""Evaluate, train, evaluate, report: what the *_onevision_si.sh scripts start.

    python scripts/train/run_and_evaluate.py --preset demo --eval_data test.json -- FLAGS OF llava/train/train.py

Everything that can be found wrong without loading a model is found first. Training and evaluation run in
processes of their own, so that peak memory is the training's. OUTPUT_DIR holds the model, loss.png,
trainer_state.json, report.json and, with an evaluation set, eval_before.jsonl and eval_after.jsonl.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import expected_time

from llava.errors import InputError, command
from llava.eval.metrics import METRICS
from llava.runs import run_folder
from llava.runs.run_card import write_run_card
from llava.runs.run_report import closing_table, update_report
from llava.train.flags.parsing import parse_arguments
from llava.train.flags.preflight import check_paths, check_records
from llava.train.objectives import chooses
from llava.train.parts.build import run_dtype
from llava.train.parts.tunable import adapter_only

TRAIN = Path(__file__).resolve().parents[2] / "llava" / "train" / "train_mem.py"


@command
def main(argv: list[str] | None = None) -> None:
    """Run the whole job; a finished one is refused, an unfinished one continued."""
    options, train_flags = split_arguments(sys.argv[1:] if argv is None else argv)
    model_args, data_args, training_args = parse_arguments(train_flags)
    check_paths(model_args, data_args, training_args)
    parts = check_records(data_args, training_args, training_args.data_processes_of(options.num_gpus))
    if options.eval_data and not Path(options.eval_data).is_file():
        raise InputError(f"--eval_data {options.eval_data}: no such file; set EVAL_DATA to a LLaVA JSON, or to nothing")
    folder = Path(training_args.output_dir)
    trained = (folder / run_folder.STATE_FILE).exists() and not training_args.overwrite_output_dir
    if trained and read_report(folder).get("preset") is not None:
        raise InputError(
            f"OUTPUT_DIR {folder} holds a finished run: set another one, or give --overwrite_output_dir True to start "
            f"again. {run_folder.more_steps(folder)}"
        )
    run_folder.check_writable(folder)
    if training_args.overwrite_output_dir:
        for name in ("before", "after"):
            answers_file(folder, name).unlink(missing_ok=True)

    def accuracy(name: str, model_path: str, model_base: str | None = None) -> float | None:
        if not options.eval_data:
            return None
        say(f"accuracy {name} training, on {options.eval_data} ...")
        flags = bits_flags(training_args)
        flags += ["--answers-of", data_args.data_path] if chooses(training_args) else []
        return evaluate(answers_file(folder, name), model_path, model_base, model_args, data_args, options, flags)

    if not trained:
        say(*outlook(options, model_args, training_args, sum(len(records) for _, records in parts)))
    before = accuracy("before", model_args.model_name_or_path)
    if not trained:
        say(f"training, into {folder}; Python loads PyTorch again ...")
        run_training(train_flags, options.num_gpus)
    partial = training_args.lora_enable or training_args.zo_quantized_scales or adapter_only(training_args)
    base = model_args.model_name_or_path if partial else None
    after = accuracy("after", str(folder), base)
    found = {"preset": options.preset, "accuracy_before": before, "accuracy_after": after}
    report = update_report(folder, found)
    write_run_card(folder)
    sys.stdout.write(f"\n{closing_table(report, folder)}\n")


def outlook(options: argparse.Namespace, model_args: Any, args: Any, records: int) -> Sequence[str]:
    """What is known of the run before it starts; times are of the preset's own model."""
    processes = args.data_processes_of(options.num_gpus)
    batch, steps = expected_time.batch_of(args, processes), expected_time.steps_of(args, records, processes)
    own = expected_time.MODELS.get(options.preset, model_args.model_name_or_path)
    preset = options.preset if model_args.model_name_or_path == own else "custom"
    return expected_time.lines(preset, args.trainer_mode, steps, batch, records)


def say(*lines: str) -> None:
    """Lines for the person who waits."""
    sys.stderr.write("".join(f"{line}\n" for line in lines))


def split_arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our own options, and what stands behind `--` for train.py."""
    cut = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="custom", help="name for the report")
    parser.add_argument("--num_gpus", type=int, default=1, help="processes that torchrun starts; 1: none but ours")
    parser.add_argument("--eval_data", default="", help="LLaVA JSON for the accuracy before and after; empty: none")
    parser.add_argument("--eval_metric", default="exact", choices=sorted(METRICS))
    parser.add_argument("--eval_batch_size", type=int, default=16)
    return parser.parse_args(argv[:cut]), argv[cut + 1 :]


def run_training(flags: list[str], num_gpus: int) -> None:
    """llava/train/train_mem.py in a process of its own; its failure is ours, with its exit code."""
    launcher = [sys.executable]
    if num_gpus > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_gpus}"]
    run([*launcher, str(TRAIN), *flags])


def bits_flags(args: Any) -> list[str]:
    """Flags of the evaluation of a run on a base in 4 or 8 bits: the same base, in the same dtype."""
    if args.bits == 16:
        return []
    flags = ["--bits", str(args.bits), "--torch-dtype", str(run_dtype(args)).removeprefix("torch.")]
    if args.bits == 4:
        flags += ["--quant-type", args.quant_type, "--double-quant", str(args.double_quant)]
    return flags


def evaluate(
    answers: Path,
    model_path: str,
    model_base: str | None,
    model_args: Any,
    data_args: Any,
    options: argparse.Namespace,
    more: list[str],
) -> float:
    """Accuracy of a model on the evaluation set, 0..1; answers that `answers` already holds are not made again."""
    flags = ["--model-path", model_path, "--data", options.eval_data, "--output", str(answers)]
    flags += [
        "--metric",
        options.eval_metric,
        "--batch-size",
        str(options.eval_batch_size),
        "--version",
        model_args.version,
    ]
    if model_base is not None:
        flags += ["--model-base", model_base]
    flags += ["--image-folder", data_args.image_folder or ".", *more]
    run([sys.executable, "-m", "llava.eval.accuracy", *flags])
    return json.loads(answers.with_suffix(".json").read_text(encoding="utf-8"))["accuracy"]


def run(words: list[str]) -> None:
    """Run a command; when it fails, end with its exit code (it has said why).

    A command that is stopped may take its time to save. It has Ctrl-C from the terminal as we have, SIGTERM from us.
    """
    process = subprocess.Popen(words)
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    code = None
    while code is None:
        with contextlib.suppress(KeyboardInterrupt):
            code = process.wait()
    signal.signal(signal.SIGTERM, before)
    if code:
        sys.exit(code if code > 0 else 128 - code)


def answers_file(folder: Path, name: str) -> Path:
    """Where the answers of the evaluation before or after training are kept."""
    return folder / f"eval_{name}.jsonl"


def read_report(folder: Path) -> dict[str, Any]:
    """report.json of `folder`; empty when there is none."""
    path = folder / run_folder.REPORT_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


if __name__ == "__main__":
    main()

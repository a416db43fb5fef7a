"""Linear probing: logistic regression on the model's last hidden state, in place of tuning it.

    python -m llava.eval.probe --model-path M --train-data train.json --data test.json --image-folder D \\
        --output probe.json

As in the MeZO paper (Malladi et al. 2023, appendix E): the features of a record are the last hidden state at the last
token of its prompt, which the head would make the answer's first token of; the classes are the distinct answers of the
training set. The strength of the regularisation is chosen by five-fold cross-validation on it (`logistic.py`; `--seed`
draws the folds). An answer that the training set does not have cannot be given: the output counts these.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from llava.conversation import get_template
from llava.errors import InputError, command_with, naming
from llava.eval.generation import Answerer
from llava.eval.loading_flags import add_loading_flags, load, quantised
from llava.eval.logistic import best_strength, fit
from llava.eval.metrics import METRICS, metric_named
from llava.eval.questions import question_and_reference
from llava.mezo.command_line import Parser
from llava.mezo.durable import write_durably
from llava.mezo.inference import evaluation_mode
from llava.model.checkpoint_kind import check_checkpoint
from llava.model.own_settings import template_of
from llava.samples.loading import file_sha256, load_file
from llava.samples.pictures import PictureSettings

Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Features:
    """States [n, width] of records, float32, and their answers."""

    states: torch.Tensor
    answers: list[str]


def features_of(
    answerer: Answerer, records: Records, image_folder: str | Path, batch_size: int = 8, progress: bool = True
) -> Features:
    """The model's features of records. Raises `InputError` that names one that cannot be used."""
    if not records or batch_size < 1:
        raise InputError(f"{len(records)} records in batches of {batch_size}: both must be >= 1")
    asked = [question_and_reference(record, k, image_folder) for k, record in enumerate(records)]
    starts = range(0, len(asked), batch_size)
    with evaluation_mode(answerer.model):
        states = [
            answerer.last_states([question for question, _ in asked[k : k + batch_size]]).cpu()
            for k in tqdm(starts, desc="probing", unit="batch", disable=not progress)
        ]
    return Features(torch.cat(states), [answer for _, answer in asked])


def probe(train: Features, test: Features, metric: str = "exact", seed: int = 0) -> dict[str, Any]:
    """Fit on `train`, answer `test`.

    Returns:
        total, correct, accuracy (0..1), metric, strength (the C that was chosen), classes, unseen (records of `test`
        whose answer is none of them), and predictions.

    Raises:
        InputError: an unknown metric, or a training set with one answer alone.
    """
    is_correct, known = metric_named(metric), sorted(set(train.answers))
    if len(known) < 2:
        raise InputError(f"--train-data has {len(known)} different answers; a probe needs two at least")
    classes = torch.tensor([known.index(answer) for answer in train.answers])
    strength = best_strength(train.states, classes, len(known), seed)
    found = fit(train.states, classes, len(known), strength)(test.states)
    predictions = [known[k] for k in found.tolist()]
    correct = sum(map(is_correct, predictions, test.answers))
    return {
        "total": len(predictions),
        "correct": correct,
        "accuracy": correct / len(predictions),
        "metric": metric,
        "strength": strength,
        "classes": len(known),
        "unseen": sum(answer not in known for answer in test.answers),
        "predictions": predictions,
    }


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description="Logistic regression on the last hidden states of a LLaVA model.")
    parser.add_argument("--model-path", required=True, help="checkpoint folder or hub id")
    parser.add_argument("--model-base", help="language model that a LoRA or projector-only checkpoint belongs to")
    parser.add_argument("--train-data", required=True, help="records to fit on: x.json, x.jsonl, x.parquet, hf:NAME")
    parser.add_argument("--data", required=True, help="records to answer")
    parser.add_argument("--image-folder", type=Path, default=Path(), help="image paths are below it; default: .")
    parser.add_argument("--metric", default="exact", help=f"one of {', '.join(METRICS)}")
    parser.add_argument("--batch-size", type=int, default=8, help="records at a time")
    parser.add_argument("--version", help="conversation template; default: the checkpoint's own")
    add_loading_flags(parser)
    parser.add_argument("--seed", type=int, default=0, help="of the folds of the cross-validation")
    parser.add_argument("--output", type=Path, required=True, help="a .json file for the result")
    return parser


@command_with(_parser)
def main(argv: list[str] | None = None) -> None:
    """Entry point, see the module's docstring."""
    options = _parser().parse_args(argv)
    metric_named(options.metric)
    if options.output.suffix != ".json":
        raise InputError(f"--output {options.output}: the name must end in .json")
    if not options.image_folder.is_dir():
        raise InputError(f"--image-folder {options.image_folder}: no such folder")
    if options.batch_size < 1:
        raise InputError(f"--batch-size {options.batch_size} must be at least 1")
    pictures = PictureSettings.of(options)
    quantised(options)  # refused before anything is loaded
    given = {"--train-data": options.train_data, "--data": options.data}
    sets = {file: load_file(file, flag) for flag, file in given.items()}
    for flag, file in given.items():
        if not sets[file]:
            raise InputError(f"{flag} {file} holds no records")
    if file_sha256(options.train_data) == file_sha256(options.data):
        raise InputError("--train-data is --data: a probe is judged on records that it was not fitted on")
    check_checkpoint(options.model_path, options.model_base)
    version = options.version or template_of(options.model_path, options.model_base)
    get_template(version)
    answerer = Answerer(*load(options), version, pictures=pictures)
    features = {}
    for file, records in sets.items():
        with naming(file):
            features[file] = features_of(answerer, records, options.image_folder, options.batch_size)
    result = probe(features[options.train_data], features[options.data], options.metric, options.seed)
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    try:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"settings": settings | {"version": version}, **result}, indent=2, ensure_ascii=False)
        write_durably(options.output, text + "\n")
    except OSError as error:
        raise InputError(f"--output {options.output}: cannot write there ({error})") from error
    sys.stdout.write(
        f"total {result['total']}  correct {result['correct']}  accuracy {result['accuracy']:.4f}  "
        f"answers {result['classes']}  unseen {result['unseen']}  C {result['strength']:.3g}\n"
    )


if __name__ == "__main__":
    main()

"""Answers to all records of a set, and how many of them are right."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llava.errors import InputError, naming, short
from llava.eval.generation import Answerer, Decoding, Question
from llava.eval.metrics import metric_named
from llava.eval.questions import question_and_reference, record_id
from llava.eval.shots import Demonstration, with_demonstrations
from llava.mezo.inference import evaluation_mode
from llava.samples.pictures import PictureSettings
from llava.samples.record import record_name
from llava.samples.turns import check_text

Answers = list[dict[str, Any]]


def evaluate(
    model: Any,
    tokenizer: Any,
    image_processor: Any,
    records: Sequence[Mapping[str, Any]],
    image_folder: str | Path,
    metric: str = "exact",
    batch_size: int = 8,
    version: str | None = None,
    max_new_tokens: int = 32,
    progress: bool = True,
    done: Answers | None = None,
    on_batch: Callable[[Answers], None] | None = None,
    pictures: PictureSettings | None = None,
    demonstrations: Sequence[Demonstration] = (),
    choices: Sequence[str] = (),
) -> dict[str, Any]:
    """Answer every record greedily and compare with its last answer.

    The model is in eval mode while this runs and gets its mode back afterwards.

    Args:
        records: LLaVA JSON records; image paths are below `image_folder`.
        metric: a key of `llava.eval.metrics.METRICS`.
        version: name of the conversation template; None: the model's own.
        done: answers to the first records from an earlier run.
        on_batch: called with the new answers of every batch.
        pictures: how pictures are read.
        demonstrations: what stands before each question, see `llava.eval.shots`.
        choices: the answers that can be given; none: any text.

    Returns:
        total, correct, accuracy (a share, 0..1), metric, and answers (id, prompt, prediction, reference, correct).

    Raises:
        InputError: no record, or a record or image that cannot be used; the record is named.
    """
    is_correct = metric_named(metric)
    if not records or batch_size < 1:
        raise InputError(f"nothing to evaluate: {len(records)} records in batches of {batch_size}; both must be >= 1")
    # All records are checked before the first is answered: a bad one at the end would waste the run.
    asked = [question_and_reference(record, k, image_folder) for k, record in enumerate(records)]
    answers = list(done or [])
    answerer = Answerer(model, tokenizer, image_processor, version, pictures=pictures, choices=choices)
    with evaluation_mode(model):
        for batch in _batches(range(len(answers), len(records)), batch_size, progress):
            questions = [with_demonstrations(asked[k][0], demonstrations) for k in batch]
            predictions = answerer.answer(questions, Decoding(max_new_tokens=max_new_tokens))
            fresh = [_entry(records[k], k, *asked[k], text) for k, text in zip(batch, predictions, strict=True)]
            answers += fresh
            if on_batch is not None:
                on_batch(fresh)
    for answer in answers:
        answer["correct"] = is_correct(answer["prediction"], answer["reference"])
    correct = sum(answer["correct"] for answer in answers)
    return {
        "total": len(answers),
        "correct": correct,
        "accuracy": correct / len(answers),
        "metric": metric,
        "answers": answers,
    }


def check_field(records: Sequence[Mapping[str, Any]], field: str) -> None:
    """`InputError` for a record without the field, or with a value there that cannot name a group."""
    for number, record in enumerate(records):
        with naming(f"--group-by {field}: {record_name(record.get('id'), number)}"):
            if field not in record:
                raise InputError(f"has no such field; it has {short(', '.join(record))}")
            if record[field] == []:
                raise InputError("has an empty list there")
            check_text(json.dumps(record[field], ensure_ascii=False), f"`{field}`")


def grouped(records: Sequence[Mapping[str, Any]], answers: Answers, field: str) -> dict[str, dict[str, Any]]:
    """total, correct and accuracy for every value of a field of the records, sorted; of a list, its last entry.

    Raises:
        InputError: a record without the field.
    """
    check_field(records, field)
    hits: dict[str, list[bool]] = {}
    for record, answer in zip(records, answers, strict=True):
        value = record[field][-1] if isinstance(record[field], list) else record[field]
        hits.setdefault(str(value), []).append(answer["correct"])
    return {
        value: {"total": len(group), "correct": sum(group), "accuracy": sum(group) / len(group)}
        for value, group in sorted(hits.items())
    }


def _batches(numbers: range, size: int, progress: bool) -> Iterator[list[int]]:
    with tqdm(total=numbers.stop, initial=numbers.start, desc="evaluating", unit="record", disable=not progress) as bar:
        for start in range(numbers.start, numbers.stop, size):
            batch = list(range(start, min(start + size, numbers.stop)))
            yield batch
            bar.update(len(batch))


def _entry(record: Mapping[str, Any], index: int, question: Question, reference: str, text: str) -> dict[str, Any]:
    prompt = question.turns[-1][0]
    return {"id": record_id(record, index), "prompt": prompt, "prediction": text, "reference": reference}

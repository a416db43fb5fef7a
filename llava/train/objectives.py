"""What a zeroth-order run raises in place of lowering the loss (Malladi et al. 2023, section 3.3).

    accuracy        share of the supervised tokens that are the most likely ones: a forward, nothing is generated
    exact_match     answers are generated, and count where they equal the reference (`llava.eval.metrics.exact`)
    f1              the same, by the words that they have in common
    MODULE:FUNCTION the same, by any function(predictions, references, records) -> numbers, one a record

A step's losses are then 1 - the mean score of a micro-batch.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.errors import InputError
from llava.eval.generation import Answerer, Decoding
from llava.eval.metrics import exact, normalise
from llava.eval.questions import question_and_reference
from llava.train.zo.step_batches import OtherItems

RECORDS = "records"
"""Key of a batch's records."""

Score = Callable[[Sequence[str], Sequence[str], Sequence[Mapping[str, Any]]], Sequence[float]]
"""Of predictions, references and records, one each."""


def exact_match(
    predictions: Sequence[str], references: Sequence[str], records: Sequence[Mapping[str, Any]]
) -> list[float]:
    """1 or 0."""
    return [float(exact(one, other)) for one, other in zip(predictions, references, strict=True)]


def f1(predictions: Sequence[str], references: Sequence[str], records: Sequence[Mapping[str, Any]]) -> list[float]:
    """Harmonic mean of precision and recall of words, after `normalise`."""
    return [
        _f1(normalise(one).split(), normalise(other).split())
        for one, other in zip(predictions, references, strict=True)
    ]


def _f1(given: Sequence[str], wanted: Sequence[str]) -> float:
    common = (Counter(given) & Counter(wanted)).total()
    return 2 * common / (len(given) + len(wanted)) if common else float(given == wanted)


SCORES: dict[str, Score] = {"exact_match": exact_match, "f1": f1}
WITHOUT_GENERATION = ("loss", "accuracy")


def score_of(name: str) -> Score | None:
    """The function of an objective that needs answers; None for one that does not.

    Raises:
        InputError: no such objective, module or function.
    """
    if name in WITHOUT_GENERATION:
        return None
    if name in SCORES:
        return SCORES[name]
    return imported_score("zo_objective", name, [*WITHOUT_GENERATION, *SCORES])


def imported_score(flag: str, name: str, others: Sequence[str]) -> Score:
    """The function of a flag's MODULE:FUNCTION.

    Args:
        others: what else the flag allows, for the error.

    Raises:
        InputError: no such module or function.
    """
    module, colon, function = name.partition(":")
    if not colon:
        raise InputError(f"--{flag} {name}: allowed are {', '.join(others)}, or MODULE:FUNCTION")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"--{flag} {name}: cannot be imported ({error})") from error
    if not callable(found):
        raise InputError(f"--{flag} {name}: {function} is no function")
    score: Score = found
    return score


def scores_of(
    score: Score, flag: str, predictions: Sequence[str], references: Sequence[str], records: Sequence[Mapping[str, Any]]
) -> list[float]:
    """What a function gives for answers. InputError: not a number for each."""
    scores = [float(one) for one in score(predictions, references, records)]
    if len(scores) != len(records):
        raise InputError(f"--{flag}: the function gave {len(scores)} numbers for {len(records)} records")
    return scores


class WithRecords(OtherItems):
    """A training set whose items bring their record along."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.dataset[index], "record": self.dataset.list_data_dict[index]}


class CollateWithRecords:
    """A collator whose batches bring their records along."""

    def __init__(self, collate: Callable[[Sequence[Any]], dict[str, Any]]) -> None:
        self.collate = collate

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {**self.collate(items), RECORDS: [item["record"] for item in items]}


class GeneratedScore:
    """1 - the mean score of a batch's answers, which the model gives greedily.

    Args:
        version: name of the conversation template.
        image_folder: in front of the records' images.
    """

    def __init__(self, score: Score, tokenizer: Any, image_processor: Any, version: str, image_folder: str | None):
        self.score = score
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.version = version
        self.image_folder = Path(image_folder or "")

    def __call__(self, network: Any, batch: Mapping[str, Any]) -> float:
        records = batch[RECORDS]
        asked = [question_and_reference(record, k, self.image_folder) for k, record in enumerate(records)]
        answerer = Answerer(network, self.tokenizer, self.image_processor, self.version)
        predictions = answerer.answer([question for question, _ in asked], Decoding(max_new_tokens=32))
        scores = scores_of(self.score, "zo_objective", predictions, [reference for _, reference in asked], records)
        return 1 - sum(scores) / len(scores)

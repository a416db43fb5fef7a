"""What a zeroth-order run raises in place of lowering the loss (Malladi et al. 2023, section 3.3).

    classification  -log of the right answer's probability among all answers of the training set, see
                    `llava.mezo.answer_tree`: a forward, and the loss itself where the MeZO paper has a list of answers
    accuracy        share of the supervised tokens that are the most likely ones: a forward, nothing is generated
    exact_match     answers are generated, and count where they equal the reference (`llava.eval.metrics.exact`)
    f1              the same, by the words that they have in common
    MODULE:FUNCTION the same, by any function(predictions, references, records) -> numbers, one a record

Of all but the first a step's losses are 1 - the mean score of a micro-batch.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import math
import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llava.errors import InputError, in_one_line, short
from llava.eval.generation import Answerer, Decoding, Question
from llava.eval.metrics import exact, normalise
from llava.eval.questions import question_and_reference
from llava.samples.dataset import LazySupervisedDataset
from llava.samples.media import Entry
from llava.samples.settings import SampleSettings
from llava.train.zo.settings import CLASSIFICATION
from llava.train.zo.step_batches import OtherItems

logger = logging.getLogger(__name__)

RECORDS = "records"
"""Key of a batch's records."""
ANSWER_TOKENS = 32
"""Of a generated answer, at most."""

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
WITHOUT_GENERATION = ("loss", CLASSIFICATION, "accuracy")


def chooses(args: Any) -> bool:
    """Whether a run's objective is among the answers of its training set."""
    return args.trainer_mode == "zo" and args.zo_objective == CLASSIFICATION


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
        InputError: no such module or function, a module that fails, a function of other arguments.
    """
    module, colon, function = name.partition(":")
    if not colon:
        raise InputError(f"--{flag} {name}: allowed are {', '.join(others)}, or MODULE:FUNCTION")
    if not {"", os.getcwd()} & set(sys.path):  # as with python -m, where a file was started
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:  # whatever a module does when it is imported
        said = in_one_line(error) or type(error).__name__
        raise InputError(f"--{flag} {name}: cannot be imported ({said})") from error
    if not callable(found):
        raise InputError(f"--{flag} {name}: {function} is no function")
    try:
        inspect.signature(found).bind((), (), ())
    except TypeError as error:
        said = f"{function} must take (predictions, references, records)"
        raise InputError(f"--{flag} {name}: {said}: {error}") from error
    except ValueError:  # one of C, which does not tell
        pass
    score: Score = found
    return score


def scores_of(
    score: Score, flag: str, predictions: Sequence[str], references: Sequence[str], records: Sequence[Mapping[str, Any]]
) -> list[float]:
    """What a function gives for answers. InputError: not a number for each, or it fails."""
    try:
        given = score(predictions, references, records)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {in_one_line(error)}"
        raise InputError(f"--{flag}: the function failed at {where.filename}:{where.lineno}: {said}") from error
    try:
        scores = [float(one) for one in given]
    except (TypeError, ValueError) as error:
        raise InputError(f"--{flag}: the function gave {short(given)}, not a list of a number a record") from error
    if len(scores) != len(records):
        raise InputError(f"--{flag}: the function gave {len(scores)} numbers for {len(records)} records")
    return scores


def check_questions(dataset: LazySupervisedDataset) -> None:
    """Every record is a question with an answer. InputError: the first that is not, by its name."""
    folder = dataset.settings.image_folder or ""
    for record, raw in zip(dataset.records, dataset.list_data_dict, strict=True):
        question_and_reference(raw, record.number, folder)


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
        settings: how the training set reads records and their pictures.
        version: name of the conversation template.
    """

    def __init__(self, score: Score, tokenizer: Any, settings: SampleSettings, version: str) -> None:
        self.score = score
        self.tokenizer = tokenizer
        self.settings = settings
        self.version = version
        self._told = False
        self._asked: tuple[Any, list[tuple[Question, str]], dict[int, list[Entry]]] = (None, [], {})
        """The latest batch, its questions with their references, and the tiles of these."""

    def __call__(self, network: Any, batch: Mapping[str, Any]) -> float:
        """Raises `InputError` where the function fails, or gives something else than a finite number a record."""
        records, settings = batch[RECORDS], self.settings
        if self._asked[0] is not records:  # a step asks at several points
            folder = settings.image_folder or ""
            asked = [question_and_reference(record, k, folder) for k, record in enumerate(records)]
            self._asked = records, asked, {}
            self._look_at_lengths([reference for _, reference in asked])
        _, asked, tiles = self._asked
        questions, references = [question for question, _ in asked], [reference for _, reference in asked]
        answerer = Answerer(
            network,
            self.tokenizer,
            settings.image_processor,
            self.version,
            pictures=settings.pictures,
            keep=tiles,
        )
        predictions = answerer.answer(questions, Decoding(max_new_tokens=ANSWER_TOKENS))
        scores = scores_of(self.score, "zo_objective", predictions, references, records)
        for question, one in zip(questions, scores, strict=True):
            if not math.isfinite(one):
                raise InputError(f"--zo_objective: the function gave {one} for {question.name}, not a finite number")
        return 1 - sum(scores) / len(scores)

    def _look_at_lengths(self, references: Sequence[str]) -> None:
        if self._told:
            return
        longest = max(len(self.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in references)
        if longest > ANSWER_TOKENS:
            self._told = True
            logger.warning(
                "--zo_objective: an answer of the data has %d tokens, and those that are generated end after %d",
                longest,
                ANSWER_TOKENS,
            )

"""Free answers to a file of questions, several turns each.

    python -m llava.eval.model_vqa --model-path M --question-file Q.json --image-folder D --answers-file A.jsonl

Questions: a JSON array or JSON lines of {"sample_id", "image": [paths], "conversations": [{"from", "value"}, ...],
"metadata": {"question_type", "dataset"}}. Every human turn is asked, after the model's answers to the turns before it;
each image is one tile. Flags are those of LLaVA-NeXT's script of that name; here `--conv-mode`, `--extra-prompt`
and `--test_size` have an effect, and `--conv-mode` defaults to the checkpoint's own template.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import InputError, command_with, naming, short
from llava.eval.generation import Answerer, Decoding, Question, load_model
from llava.mezo.command_line import Parser
from llava.mm_utils import get_model_name_from_path
from llava.samples.loading import load_file
from llava.samples.media import below
from llava.samples.record import Picture, record_media
from llava.samples.turns import HUMAN, Turn, check_text, record_turns

MAX_NEW_TOKENS = 1024


def chunk(items: Sequence[Any], count: int, index: int) -> Sequence[Any]:
    """Part `index` of `count` consecutive parts of ceil(len / count) items; the last ones may be short or empty.

    Raises:
        InputError: the part does not exist.
    """
    if count < 1 or not 0 <= index < count:
        raise InputError(f"--num-chunks {count} --chunk-idx {index}: the index must be in 0..num-chunks - 1")
    size = math.ceil(len(items) / count)
    return items[size * index : size * (index + 1)]


def read_question(record: dict[str, Any], number: int) -> tuple[list[Turn], tuple[Picture, ...]]:
    """Turns and images of a record of the question file. Raises `InputError` that names it."""
    with naming(_name(record, number)):
        turns, (images, video) = record_turns(record), record_media(record)
        if video is not None:
            raise InputError("videos cannot be evaluated; give images")
        if not isinstance(record.get("metadata") or {}, dict):
            raise InputError(f"`metadata` must be an object, got {record['metadata']!r:.80}")
        for key in ("sample_id", "metadata"):
            check_text(json.dumps(record.get(key), ensure_ascii=False), f"`{key}`")
    return turns, images


def _name(record: dict[str, Any], number: int) -> str:
    """How errors call it."""
    given = record.get("sample_id", record.get("id"))
    return f"sample {number if given is None else short(repr(given))} (number {number})"


def ask(
    answerer: Answerer,
    record: dict[str, Any],
    image_folder: str | Path,
    decoding: Decoding,
    extra_prompt: str = "",
    number: int = 0,
) -> Iterator[tuple[str, str, str | None]]:
    """(question as asked, answer, reference or None) for every human turn of a record.

    Raises:
        InputError: a missing field or an unusable image; the record is named.
    """
    turns, paths = read_question(record, number)
    name, images = _name(record, number), [below(image_folder, path) for path in paths]
    said: list[tuple[str, str | None]] = []
    for position, turn in enumerate(turns):
        if turn["from"] != HUMAN:
            continue
        asked = extra_prompt + turn["value"]
        text = _with_tags(asked, images) if not said else asked
        [answer] = answerer.answer([Question(name, [*said, (text, None)], images)], decoding)
        said.append((text, answer))
        yield asked, answer, turns[position + 1]["value"] if position + 1 < len(turns) else None


def _with_tags(text: str, images: Sequence[Any]) -> str:
    """A newline behind every tag; without tags, the images come first."""
    if DEFAULT_IMAGE_TOKEN not in text:
        return f"{DEFAULT_IMAGE_TOKEN}\n" * len(images) + text
    head, *rest = text.split(DEFAULT_IMAGE_TOKEN)
    return head + "".join(f"{DEFAULT_IMAGE_TOKEN}\n{part.removeprefix(chr(10))}" for part in rest)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description="Answer a file of questions about images.")
    parser.add_argument("--model-path", default="facebook/opt-350m")
    parser.add_argument("--model-base", help="language model that a LoRA or projector-only checkpoint belongs to")
    parser.add_argument("--image-folder", default="")
    parser.add_argument("--extra-prompt", default="", help="put in front of every question")
    parser.add_argument("--question-file", default="tables/question.jsonl")
    parser.add_argument("--answers-file", type=Path, default=Path("answer.jsonl"))
    parser.add_argument("--conv-mode", help="conversation template; default: the checkpoint's own")
    parser.add_argument("--num-chunks", type=int, default=1)
    parser.add_argument("--chunk-idx", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=0.2, help="0 for greedy decoding")
    parser.add_argument("--top_p", type=float)
    parser.add_argument("--num_beams", type=int, default=1)
    parser.add_argument("--test_size", type=int, default=10_000_000, help="ask at most this many questions")
    parser.add_argument("--torch-dtype", default="auto", help="auto (the checkpoint's), float32, bfloat16 or float16")
    return parser


@command_with(_parser, version="conv-mode")
def main(argv: list[str] | None = None) -> None:
    """Entry point, see the module's docstring."""
    options = _parser().parse_args(argv)
    decoding = Decoding(MAX_NEW_TOKENS, options.temperature, options.top_p, options.num_beams)
    if options.test_size < 1:
        raise InputError(f"--test_size {options.test_size}: must be at least 1")
    records = load_file(options.question_file, "--question-file")
    if not records:
        raise InputError(f"--question-file {options.question_file} holds no questions")
    numbers = chunk(range(min(len(records), options.test_size)), options.num_chunks, options.chunk_idx)
    with naming(options.question_file):
        for number in numbers:
            read_question(records[number], number)  # one at the end would waste the run
    model, tokenizer, image_processor = load_model(options.model_path, options.model_base, options.torch_dtype)
    answerer = Answerer(model.eval(), tokenizer, image_processor, options.conv_mode, image_mode="square")
    try:
        options.answers_file.parent.mkdir(parents=True, exist_ok=True)
        file = options.answers_file.open("w", encoding="utf-8")
    except OSError as error:
        raise InputError(f"--answers-file {options.answers_file}: cannot write there ({error})") from error
    with file, naming(options.question_file):
        given = options.image_folder, decoding, options.extra_prompt
        for number in tqdm(numbers, desc="answering", unit="sample"):
            for asked, answer, reference in ask(answerer, records[number], *given, number):
                line = _line(records[number], asked, answer, reference, get_model_name_from_path(options.model_path))
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                file.flush()


def _line(record: dict[str, Any], asked: str, answer: str, reference: str | None, model_id: str) -> dict[str, Any]:
    metadata = record.get("metadata") or {}
    return {
        "dataset": metadata.get("dataset"),
        "sample_id": record.get("sample_id"),
        "prompt": asked,
        "pred_response": answer,
        "gt_response": reference,
        "shortuuid": base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode(),
        "model_id": model_id,
        "question_type": metadata.get("question_type"),
    }


if __name__ == "__main__":
    main()

"""We-Math: school mathematics on figures, with options to choose from.

Published as testmini.json with its pictures beside it (github.com/We-Math/We-Math, folder data), and with the pictures
inside parquet files (hub id We-Math/We-Math). 1740 questions; up to eight are on one picture, in files of their own.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llava.data import prompts
from llava.data.items import Item, SourceSet, text_field
from llava.data.sources import find_folder, load_tables, parquet_files, source_folder
from llava.data.splits import shuffled
from llava.errors import InputError
from llava.samples.loading import load_file

PROMPT = prompts.OPTIONS
SIZES = {"train": 1000, "val": 200, "test": 500}
HUB_ID = "We-Math/We-Math"
FILE = "testmini.json"
_COLUMNS = ["ID", "question", "option", "answer", "key"]
# `B.` after a semicolon or, where the set has forgotten it, a blank. `Shape ;C.;` is the end of an option instead.
_MARK = re.compile(r"(?P<before>^|;|\s)\s*(?P<letter>[A-Z])[.．](?!\s*(?:;|$))\s*")
_STRAY_SEMICOLON = re.compile(r";(?=[A-Z]\.$)")


def load(source: str, template: str, seed: int) -> SourceSet:
    """All questions; the options of each are shuffled by `seed` and the question's name.

    Raises:
        InputError: no such set there, or a record that cannot be used, which is named.
    """
    folder = source_folder(source)
    files = parquet_files(folder) if folder is not None else None
    if folder is not None and not files:
        return _load_json(folder, template, seed)
    items = []
    for split, table in load_tables(source, files, _COLUMNS, "image_path").items():
        for row, record in enumerate(table):
            items.append(_item(record, template, seed, f"{split}, row {row}", table.reader(row)))
    return SourceSet(items, len(items))


def _load_json(source: Path, template: str, seed: int) -> SourceSet:
    looks_like = f"{FILE} or *.parquet"
    folder = find_folder(source, lambda path: (path / FILE).is_file(), looks_like)
    items = []
    for number, record in enumerate(load_file(folder / FILE)):
        file = folder / text_field(record, "image_path", f"{FILE}, record {number}")
        items.append(_item(record, template, seed, str(file), file.read_bytes))
    return SourceSet(items, len(items))


def _item(record: dict[str, Any], template: str, seed: int, file: str, read: Callable[[], bytes]) -> Item:
    # IDs are shared by the steps of a problem, and keys by the questions of a step.
    name = f"{text_field(record, 'ID', file)}/{text_field(record, 'key', file)}"
    question, answer, text = (text_field(record, key, name) for key in ("question", "answer", "option"))
    options = split_options(text, name)
    if answer not in options:
        raise InputError(f"{name}: the answer is {answer!r}, but the options are {', '.join(options)}: {text!r}")
    listed = prompts.join_options(shuffled(list(options.values()), seed, name))
    prompt = template.format(question=question, options=listed)
    return Item(name, prompt, options[answer], record["key"], file, read)


def split_options(text: str, where: str) -> dict[str, str]:
    """Option texts by their letters: `A. 1.5; B. 2.5` is `{"A": "1.5", "B": "2.5"}`.

    Besides the plain form this reads what the published file has in a few records: a full-width stop after the letter,
    a blank in place of the semicolon, a semicolon before the last letter of an option's text (`∠AB;E.`, which becomes
    `∠ABE.`), and a last option whose letter is too high.

    Raises:
        InputError: letters that do not go on one by one from A, fewer than two options, or an empty one.
    """
    marks: list[re.Match[str]] = []
    for mark in _MARK.finditer(text):
        # After a blank only the letter that is due counts: options may be about points named by letters.
        if not mark["before"].isspace() or mark["letter"] == chr(ord("A") + len(marks)):
            marks.append(mark)
    letters = "".join(mark["letter"] for mark in marks)
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    texts = [_option(text[mark.end() : end]) for mark, end in zip(marks, ends, strict=False)]  # maybe without a mark
    consecutive = "".join(chr(ord("A") + k) for k in range(len(marks) - 1))
    starts_late = bool(marks) and marks[0].start() > 0
    if len(marks) < 2 or letters[:-1] != consecutive or starts_late or not all(texts):
        found = ", ".join(letters) or "none"
        raise InputError(f"{where}: options must be `A. ...; B. ...` with letters in order, found {found} in {text!r}")
    return dict(zip(letters, texts, strict=True))


def _option(text: str) -> str:
    return _STRAY_SEMICOLON.sub("", text.strip(" ;\t\n"))

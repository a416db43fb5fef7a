"""ChartQA: questions on charts, written by people or by a program, in splits of its own.

Published as folders with JSON and PNG files (github.com/vis-nlp/ChartQA, folder `ChartQA Dataset`), and with the
pictures inside parquet files (hub id HuggingFaceM4/ChartQA).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llava.data import prompts
from llava.data.items import Item, SourceSet, text_field
from llava.data.sources import find_folder, load_tables, parquet_files, source_folder
from llava.data.splits import SPLITS
from llava.errors import InputError
from llava.samples.loading import load_file

PROMPT = prompts.CHART
SIZES = {"train": 1000, "val": 500, "test": 1000}
HUB_ID = "HuggingFaceM4/ChartQA"
KINDS = ("human", "augmented")
_COLUMNS = ["query", "label", "human_or_machine"]
_KIND_OF_ROW = {0: "human", 1: "augmented", "human": "human", "machine": "augmented"}
_OTHER_NAMES = {"validation": "val"}


def load(source: str, template: str, seed: int) -> SourceSet:
    """All questions of the three splits, both kinds together; nothing here depends on the seed.

    Raises:
        InputError: no such set there, a split is missing, or a record cannot be used, which is named.
    """
    folder = source_folder(source)
    files = parquet_files(folder) if folder is not None else None
    items = (
        _read_folders(folder, template) if folder is not None and not files else _read_tables(source, files, template)
    )
    return SourceSet(items, len(items))


def _read_folders(source: Path, template: str) -> list[Item]:
    looks_like = "train/, val/ and test/, or with *.parquet,"
    folder = find_folder(source, lambda path: all((path / split).is_dir() for split in SPLITS), looks_like)
    items = []
    for split in SPLITS:
        for kind in KINDS:
            file = folder / split / f"{split}_{kind}.json"
            if not file.is_file():
                raise InputError(f"--source {source}: {file} is missing")
            for number, record in enumerate(load_file(file)):
                name = f"{file.name}, record {number}"
                picture = folder / split / "png" / text_field(record, "imgname", name)
                prompt, answer = _texts(record, template, name)
                items.append(Item(name, prompt, answer, kind, str(picture), picture.read_bytes, split))
    return items


def _read_tables(source: str, files: dict[str, list[str]] | None, template: str) -> list[Item]:
    tables = load_tables(source, files, _COLUMNS, "image")
    tables = {_OTHER_NAMES.get(split, split): table for split, table in tables.items()}
    missing = [split for split in SPLITS if split not in tables]
    if missing:
        raise InputError(f"--source {source}: no split {', '.join(missing)}; it has {', '.join(tables)}")
    items = []
    for split in SPLITS:
        for row, record in enumerate(tables[split]):
            name = f"{split}, row {row}"
            prompt, answer = _texts(record | {"label": _only_label(record["label"], name)}, template, name)
            kind = _KIND_OF_ROW.get(record["human_or_machine"])
            if kind is None:
                raise InputError(f"{name}: human_or_machine is {record['human_or_machine']!r}, allowed are 0 and 1")
            items.append(Item(name, prompt, answer, kind, "of the row", tables[split].reader(row), split))
    return items


def _texts(record: dict[str, Any], template: str, name: str) -> tuple[str, str]:
    return template.format(question=text_field(record, "query", name)), text_field(record, "label", name)


def _only_label(labels: Any, name: str) -> Any:
    if not isinstance(labels, list) or len(labels) != 1:
        raise InputError(f"{name}: label must be a list of one text, got {labels!r:.80}")
    return labels[0]

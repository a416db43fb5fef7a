"""Records in tables: `x.parquet`, and `hf:NAME[:SPLIT]`, whatever the package `datasets` reads under a name.

NAME is a hub id (`owner/name`, or `owner/name/config` for one of several configurations), a folder that
`save_to_disk` wrote, or a folder of files that `datasets` knows, as a clone of a hub data set. SPLIT is `train` by
default, and may be a part as `train[:10%]`. The network is used for hub ids alone, and not with HF_HUB_OFFLINE=1.

A row becomes a record: null values are as if they were missing, and a picture that is stored as bytes, or as
Hugging Face's `{"bytes", "path"}`, is read where it lies (`stored.py`); without bytes it is its path. `datasets` keeps
the rows in a file of its own (HF_HOME), which is mapped and takes no memory.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llava.errors import InputError, in_one_line, short
from llava.samples.stored import Place, StoredPicture, digest_of, json_of

logger = logging.getLogger(__name__)

HUB, PARQUET = "hf:", ".parquet"
ROWS_AT_ONCE = 100
INSTALL_HINT = "pip install -e '.[data]'"
_NAME = re.compile(r"hf:(?P<name>[^:]+)(?::(?P<split>.+))?", re.DOTALL)
_SAVED = ("state.json", "dataset_dict.json")


def is_table(path: str) -> bool:
    """Whether a data path names a table."""
    return path.startswith(HUB) or path.endswith(PARQUET)


def read_table(path: str) -> list[dict[str, Any]]:
    """The records of a table. Raises `InputError`: no such table, or one that cannot be read."""
    rows = _Rows(_load(path), short(path))
    return list(rows.records())


def table_sha256(path: str) -> str:
    """SHA-256 of the content of `hf:NAME`, the bytes of pictures among it, whatever files it lies in."""
    digest = hashlib.sha256()
    for record in read_table(path):
        digest.update(json.dumps(record, sort_keys=True, default=json_of).encode() + b"\n")
    return digest.hexdigest()


class _Rows:
    """Rows of a data set of `datasets` by number, as values of Python without any decoding."""

    def __init__(self, data: Any, shown: str) -> None:
        self.shown = shown
        own_json = {name: _is_json(data.data.schema.field(name).type) for name in data.column_names}
        others = [name for name, fits in own_json.items() if not fits]
        if others:
            logger.warning("%s: columns that JSON does not have are not read: %s", shown, short(", ".join(others)))
        self._data = data.remove_columns(others).with_format("arrow")

    def __getitem__(self, number: int) -> dict[str, Any]:
        row: dict[str, Any] = self._data[number : number + 1].to_pylist()[0]
        return row

    def records(self) -> Iterator[dict[str, Any]]:
        number = 0
        for batch in self._data.iter(batch_size=ROWS_AT_ONCE):
            for row in batch.to_pylist():
                yield {key: self._value(value, number, (key,)) for key, value in row.items()}
                number += 1

    def _value(self, value: Any, row: int, place: Place) -> Any:
        """The value, with a picture in place of bytes."""
        if isinstance(value, list):
            return [self._value(one, row, (*place, number)) for number, one in enumerate(value)]
        if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
            return value["path"] if value["bytes"] is None else self._picture(value["bytes"], row, place)
        if isinstance(value, dict):
            return {key: self._value(one, row, (*place, key)) for key, one in value.items()}
        return self._picture(value, row, place) if isinstance(value, bytes) else value

    def _picture(self, data: bytes, row: int, place: Place) -> StoredPicture:
        where = ".".join(map(str, place))
        return StoredPicture(digest_of(data), f"{where} of {self.shown}, row {row},", self, row, place)


def _is_json(kind: Any) -> bool:
    """Whether values of an Arrow type are JSON, or bytes."""
    import pyarrow.types as types

    if types.is_struct(kind):
        return all(_is_json(kind.field(number).type) for number in range(kind.num_fields))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind) or types.is_dictionary(kind):
        return _is_json(kind.value_type)
    plain = (types.is_integer, types.is_floating, types.is_boolean, types.is_null)
    texts = (types.is_string, types.is_large_string, types.is_string_view, types.is_binary, types.is_large_binary)
    return any(fits(kind) for fits in (*plain, *texts))


def _load(path: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"data file {short(path)}: tables need the package datasets: {INSTALL_HINT}") from error
    try:
        return datasets.Dataset.from_parquet(path) if not path.startswith(HUB) else _read_named(path, datasets)
    except InputError:
        raise
    except Exception as error:  # the package, its readers and the hub's client raise errors of many kinds
        reason = short(in_one_line(error) or type(error).__name__)
        raise InputError(f"data file {short(path)} cannot be read: {reason}") from error


def _read_named(path: str, datasets: Any) -> Any:
    match = _NAME.fullmatch(path)
    if match is None:
        raise InputError(f"data file {short(path)}: give hf:NAME or hf:NAME:SPLIT, NAME a hub id or a folder")
    name, split = match["name"], match["split"] or "train"
    if any((Path(name) / file).is_file() for file in _SAVED):
        saved = datasets.load_from_disk(name)
        if not hasattr(saved, "keys"):
            if match["split"] is not None:
                raise InputError(f"data file {short(path)}: {name} was saved without splits; give hf:{name}")
            return saved
        return _part(saved, split, path, datasets)
    owner_and_name = name.split("/")
    if not Path(name).is_dir() and len(owner_and_name) == 3:
        return datasets.load_dataset("/".join(owner_and_name[:2]), owner_and_name[2], split=split)
    return datasets.load_dataset(name, split=split)


def _part(saved: Any, split: str, path: str, datasets: Any) -> Any:
    """A split of what `save_to_disk` wrote, or a part of it, as `datasets` itself has it only for files."""
    name = split.partition("[")[0]
    if name not in saved:
        raise InputError(f"data file {short(path)}: no split {name!r}; allowed: {', '.join(saved)}")
    if name == split:
        return saved[name]
    lengths = {key: len(rows) for key, rows in saved.items()}
    [part] = datasets.ReadInstruction.from_spec(split).to_absolute(lengths)
    return saved[name].select(range(part.from_, part.to))

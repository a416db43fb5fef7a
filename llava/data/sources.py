"""Where a public set comes from: a folder as it was published, a folder of parquet files, or a Hugging Face hub id.

Parquet files and hub ids are read with the package `datasets`, which keeps its own cache (HF_HOME).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.errors import InputError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SPLIT_OF_FILE = re.compile(r"[A-Za-z]+")


@dataclass(frozen=True)
class Table:
    """The rows of one split, and its pictures as undecoded bytes."""

    rows: Any
    pictures: Any
    column: str

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The rows without their pictures."""
        return iter(self.rows)

    def reader(self, index: int) -> Callable[[], bytes]:
        """A function that gives the bytes of row `index`'s picture, or raises `OSError`."""

        def read() -> bytes:
            stored = self.pictures[index][self.column] or {}
            if stored.get("bytes"):
                return stored["bytes"]
            if not stored.get("path"):
                raise OSError("the row has none")
            return Path(stored["path"]).read_bytes()

        return read


def source_folder(source: str, hub: bool = True) -> Path | None:
    """The folder that `--source` names, or None for a hub id.

    Raises:
        InputError: neither, or a hub id where `hub` is false.
    """
    path = Path(source)
    if path.is_dir():
        return path
    if path.exists():
        raise InputError(f"--source {source} is a file; give the folder that the set is in")
    if not hub:
        raise InputError(f"--source {source}: no such folder")
    if not HUB_ID.fullmatch(source):
        raise InputError(f"--source {source}: no such folder, and not a hub id (owner/name) either")
    return None


def find_folder(source: Path, is_it: Callable[[Path], bool], looks_like: str) -> Path:
    """The source itself or the one folder right below it that `is_it`; `looks_like` describes it for errors."""
    if is_it(source):
        return source
    below = sorted(path for path in source.iterdir() if path.is_dir())
    found = [path for path in below if is_it(path)]
    if len(found) != 1:
        what = "more than one folder of" if found else "no folder with"
        have = ", ".join(path.name for path in found or sorted(source.iterdir())[:10]) or "nothing"
        raise InputError(f"--source {source}: {what} {looks_like} there or one level below; it has: {have}")
    return found[0]


def parquet_files(folder: Path) -> dict[str, list[str]]:
    """The parquet files in a folder and right below it, by split.

    The split is what a file's name starts with (`train-00000-of-00003.parquet`), or else its folder's name.
    """
    files: dict[str, list[str]] = {}
    for file in sorted([*folder.glob("*.parquet"), *folder.glob("*/*.parquet")]):
        name = _SPLIT_OF_FILE.match(file.name.removesuffix(".parquet"))
        files.setdefault(name[0] if name else file.parent.name, []).append(str(file))
    return files


def load_tables(source: str, files: dict[str, list[str]] | None, columns: list[str], image: str) -> dict[str, Table]:
    """The tables of a set by split, from parquet files or, without any, from the hub id `source`.

    Args:
        columns: what each row must have besides its picture.
        image: the column of the pictures.

    Raises:
        InputError: the package is missing, the set cannot be loaded, or a column is missing.
    """
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"--source {source}: parquet files and hub ids need `pip install datasets`") from error
    try:
        loaded = datasets.load_dataset("parquet", data_files=files) if files else datasets.load_dataset(source)
    except Exception as error:  # the package, its readers and the hub's client raise errors of many kinds
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        what = "its parquet files cannot be read" if files else "no such folder, and as a hub id it cannot be loaded"
        raise InputError(f"--source {source}: {what} ({reason})") from error
    tables = {}
    for split, data in loaded.items():
        missing = [name for name in [*columns, image] if name not in data.column_names]
        if missing:
            have = ", ".join(data.column_names)
            raise InputError(f"--source {source}, split {split}: no column {', '.join(missing)}; it has {have}")
        # Undecoded: a picture that cannot be decoded is then found here, where its record can be named.
        pictures = data.select_columns([image]).cast_column(image, datasets.Image(decode=False))
        tables[split] = Table(data.select_columns(columns), pictures, image)
    return tables

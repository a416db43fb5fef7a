"""Read training or evaluation records: one file, several files in braces, or a YAML mixture.

| path | content |
| --- | --- |
| `x.json` | one JSON array of records |
| `x.jsonl` | one record a line, blank lines are skipped; or an array as in `x.json` |
| `x.parquet`, `hf:NAME[:SPLIT]` | a record a row, see `llava.samples.tables` |
| `prefix{a,b}.json` | `prefixa.json`, then `prefixb.json`; `.jsonl` and `.parquet` likewise |
| `x.yaml` | `datasets:` a list of `{json_path, sampling_strategy}` |

A sampling strategy is `all`, `first:N`, `end:N` or `random:N`; N is a count, or `P%` of the file, rounded up.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import yaml

from llava.errors import InputError, short
from llava.samples.tables import HUB, is_table, read_table, table_sha256

logger = logging.getLogger(__name__)

JsonRecord = dict[str, Any]
Parts = list[tuple[str, list[JsonRecord]]]
"""Files of records, each with what is taken of it."""
FORMS = "a .json, .jsonl, .parquet, prefix{a,b}.json or .yaml file, or hf:NAME"
STRATEGIES = "all, first:N, end:N, random:N (N a count such as 100, or a part such as 2.5%)"
_BRACES = re.compile(r"(?P<prefix>.*)\{(?P<names>[^{}]*)\}(?P<suffix>\.(?:jsonl?|parquet))", re.DOTALL)
_AMOUNT = re.compile(r"(?P<number>\d{1,18})|(?P<percent>\d{1,18}(?:\.\d{1,18})?)%")
_BETWEEN_RECORDS = re.compile(r"[\s,]*")
MOST_LEVELS = 50
"""Of lists and objects in each other in a record; nothing that is meant has so many."""


def load_parts(data_path: str | Path, seed: int = 0) -> Parts:
    """All records of `--data_path` in order, file by file: (file, what is taken of it).

    `seed` decides what `random:N` takes, the same on every process. Raises `InputError` naming the file, the line
    where there is one, and what is wrong; a single file is never skipped.
    """
    if not data_path:
        raise InputError(f"--data_path is not set; give {FORMS}")
    path = str(data_path)
    if _is_mixture(path):
        return _load_mixture(path, seed)
    return [(file, load_file(file)) for file in data_files(path)]


def data_files(data_path: str | Path) -> list[str]:
    """The files of records behind a data path, in order; only a mixture is opened for it."""
    path = str(data_path)
    if _is_mixture(path):
        return [entry["json_path"] for entry in _mixture_entries(path)]
    braces = _BRACES.fullmatch(path)
    if braces:
        return [braces["prefix"] + name + braces["suffix"] for name in braces["names"].split(",")]
    return [path]


def _is_mixture(path: str) -> bool:
    return path.endswith((".yaml", ".yml")) and not path.startswith(HUB)


def is_there(file: str) -> bool:
    """Whether one of `data_files` is a file; `hf:NAME` is not looked for before it is read."""
    return file.startswith(HUB) or Path(file).is_file()


def file_sha256(file: str | Path) -> str:
    """SHA-256, in hexadecimal, of the content of one of `data_files`; of a table with a name, of its records."""
    if str(file).startswith(HUB):
        return table_sha256(str(file))
    digest = hashlib.sha256()
    with Path(file).open("rb") as opened:
        while block := opened.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def load_file(path: str | Path, flag: str = "--data_path") -> list[JsonRecord]:
    """The records of one `.json`, `.jsonl` or `.parquet` file, or of `hf:NAME[:SPLIT]`; errors tell of `flag`."""
    shown = short(path)
    with _existing(str(path), flag):
        records = _read(str(path), shown)
    for index, record in enumerate(records):
        if not isinstance(record, dict):
            raise InputError(f"data file {shown}: record {index} is {_kind(record)}, but must be a JSON object")
        if _too_deep(record):
            raise InputError(f"data file {shown}: record {index} has lists or objects too deep in each other")
    return records


def _read(path: str, shown: str) -> list[Any]:
    if is_table(path):
        if not path.startswith(HUB):
            _check_there(path)
        return read_table(path)
    parsers: dict[str, Callable[[str, str], list[Any]]] = {".json": _parse_json, ".jsonl": _parse_jsonl}
    parse = parsers.get(Path(path).suffix)
    if parse is None and Path(path).suffix == ".yaml":
        raise InputError(f"data file {shown}: a mixture is for training alone; give one of its files")
    if parse is None:
        raise InputError(
            f"data file {shown}: its name must end in .json, .jsonl or .parquet (or .yaml for a mixture), or begin "
            f"with {HUB}"
        )
    return parse(shown, _read_text(path))


def _too_deep(record: JsonRecord) -> bool:
    level: list[Any] = [record]
    for _ in range(MOST_LEVELS):
        inside = (value for one in level for value in (one.values() if isinstance(one, dict) else one))
        level = [value for value in inside if isinstance(value, (dict, list))]
        if not level:
            return False
    return True


def _read_text(path: str) -> str:
    with _reading(path):
        return Path(path).read_text(encoding="utf-8-sig")


def _check_there(path: str) -> None:
    with _reading(path), Path(path).open("rb"):
        pass


@contextmanager
def _existing(path: str, flag: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"data file {short(path)} does not exist; check {flag}") from error


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """What goes wrong with a file, but that it is not there, becomes an `InputError` that names it."""
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise InputError(f"data file {short(path)} is a folder or a device, but must be a file")
        yield
    except (InputError, FileNotFoundError):
        raise
    except UnicodeDecodeError as error:
        raise InputError(f"data file {short(path)} is not UTF-8 text: {error}") from error
    except OSError as error:
        raise InputError(f"data file {short(path)} cannot be read: {error.strerror}") from error
    except ValueError as error:  # no file can have that name
        raise InputError(f"data file {short(path)} cannot be read: {error}") from error


def _parse_json(path: str, text: str) -> list[Any]:
    records = _parsed(path, text)
    if not isinstance(records, list):
        raise InputError(f"data file {path} must hold one JSON array of records, but holds {_kind(records)}")
    return records


def _parse_jsonl(path: str, text: str) -> list[Any]:
    if text.lstrip().startswith("["):  # LLaVA-NeXT's question files are arrays by this name
        return _parse_json(path, text)
    records = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        record = _parsed(path, line, number)
        if not isinstance(record, dict):
            raise InputError(f"data file {path}, line {number}: {_kind(record)}, but each line must be a JSON object")
        records.append(record)
    return records


def _parsed(path: str, text: str, first: int = 1) -> Any:
    """JSON whose first line has this number in the file."""
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        line = first + error.lineno - 1
        lines = error.msg == "Extra data" and path.endswith(".json")
        hint = " (a file with a record a line is named .jsonl)" if lines else ""
        raise InputError(f"data file {path}, line {line}, column {error.colno}: {error.msg}{hint}") from error
    except RecursionError as error:
        where = _place_of_failure(text, first)
        raise InputError(f"data file {path}, {where}: lists or objects too deep in each other") from error
    except ValueError as error:  # a key that stands twice, a number of too many digits
        raise InputError(f"data file {path}, {_place_of_failure(text, first)}: {error}") from error


def _place_of_failure(text: str, first: int) -> str:
    """The record of an array at which decoding fails, or that of a line."""
    opening, number = re.match(r"\s*\[", text), 0
    start = opening.end() if opening else 0
    while (between := _BETWEEN_RECORDS.match(text, start)) is not None:
        start = between.end()
        try:
            _, start = _DECODER.raw_decode(text, start)
        except (RecursionError, ValueError):
            break
        number += 1
    line = first + text.count("\n", 0, start)
    return f"record {number}, from line {line} on" if opening else f"from line {line} on"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        [(repeated, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {repeated!r:.80} stands more than once in an object")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _load_mixture(path: str, seed: int) -> Parts:
    parts: Parts = []
    for position, entry in enumerate(_mixture_entries(path)):
        file, strategy = entry["json_path"], entry.get("sampling_strategy", "all")
        read = load_file(file)
        rng = random.Random(f"{seed}-{position}")
        taken = sample_records(read, strategy, rng, where=f"{path}: {short(file)}")
        logger.info("%s: %d of %d records (%s)", file, len(taken), len(read), strategy)
        parts.append((file, taken))
    return parts


def _mixture_entries(path: str) -> list[dict[str, Any]]:
    with _existing(path, "--data_path"):
        text = _read_text(path)
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:  # the last two of dates and numbers
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = short(getattr(error, "problem", error))
        raise InputError(f"data file {path}{line}: not valid YAML: {problem}") from error
    entries = content.get("datasets") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise InputError(f"data file {path} needs a list `datasets:` of json_path and sampling_strategy")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("json_path"), str):
            raise InputError(f"data file {path}: dataset {number} has no json_path")
        unknown = set(entry) - {"json_path", "sampling_strategy"}
        if unknown:
            logger.warning(
                "%s: dataset %d: unknown keys without effect: %s", path, number, short(sorted(map(str, unknown)))
            )
    return entries


def sample_records(records: list[JsonRecord], strategy: Any, rng: random.Random, where: str) -> list[JsonRecord]:
    """What a sampling strategy takes of one file; `random` shuffles with `rng` and takes the first N."""
    text = strategy if isinstance(strategy, str) else str(strategy)
    name, colon, amount = text.strip().partition(":")
    if name == "all" and not colon:
        return records
    takers: dict[str, Callable[[int], list[JsonRecord]]] = {
        "first": lambda count: records[:count],
        "end": lambda count: records[len(records) - count :],
        "random": lambda count: rng.sample(records, len(records))[:count],
    }
    match = _AMOUNT.fullmatch(amount.strip())
    if name not in takers or match is None:
        raise InputError(f"{where}: sampling_strategy {text!r:.80} is not allowed; allowed: {STRATEGIES}")
    percent = match["percent"]
    count = math.ceil(Fraction(percent) * len(records) / 100) if percent else int(match["number"])
    return takers[name](min(count, len(records)))


def records_text(records: Iterable[dict]) -> str:
    """The content of a LLaVA JSON file, one record a line."""
    lines = ",\n".join(json.dumps(item) for item in records)
    return f"[\n{lines}\n]\n"

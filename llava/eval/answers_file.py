"""The answers of an evaluation on disk: JSON lines that an interrupted run is continued from.

`answers.jsonl` holds one object per answered record, in the order of the data; `answers.json` beside it holds the
settings from the start and the result at the end.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from llava.errors import InputError
from llava.mezo.durable import write_durably
from llava.samples.loading import file_sha256

_START_AGAIN = "pass --overwrite to start again, or choose another --output"


class AnswersFile:
    """Append-only answers of one run; `done` holds those that an earlier, interrupted run left.

    Nothing is written before the file is entered, so that a model which does not load leaves no trace.

    Args:
        path: the .jsonl file; its folder is made if needed.
        settings: what decides the answers (model, data, template, decoding); JSON values.
        ids: ids of all records, in order.
        overwrite: drop what is there.

    Raises:
        InputError: the file cannot be written, or what is there belongs to another run.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], ids: list[Any], overwrite: bool = False) -> None:
        if path.suffix != ".jsonl":
            raise InputError(f"--output {path}: the name must end in .jsonl")
        self.path = path
        self.summary_path = path.with_suffix(".json")
        self.settings = dict(settings)
        self._kept = 0
        """Bytes of the file that hold whole answers."""
        with self._writing():
            self.done = [] if overwrite else self._earlier_answers(ids)

    def __enter__(self) -> AnswersFile:
        with self._writing():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8")
            self._file.truncate(self._kept)
            self._write_summary({"complete": False})
        return self

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"--output {self.path}: cannot write there ({error})") from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._writing():
            self._file.close()

    def append(self, answers: Iterable[Mapping[str, Any]]) -> None:
        """Write further answers; they are on disk when this returns."""
        with self._writing():
            for answer in answers:
                self._file.write(json.dumps(answer, ensure_ascii=False) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the result beside the answers."""
        with self._writing():
            self._write_summary({"complete": True, **result})

    def _earlier_answers(self, ids: list[Any]) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):
            lines.pop()  # the run was stopped while it wrote this line; it is answered again
        self._kept = sum(len(line.encode("utf-8")) for line in lines)
        if lines:
            self._check_settings()
        return [self._checked(number, line, ids) for number, line in enumerate(lines, start=1)]

    def _check_settings(self) -> None:
        try:
            earlier = json.loads(self.summary_path.read_text(encoding="utf-8"))["settings"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            message = f"{self.path}: has answers, but {self.summary_path.name} does not say whose; {_START_AGAIN}"
            raise InputError(message) from error
        for name in sorted({*earlier, *self.settings}):
            before, now = earlier.get(name), self.settings.get(name)
            if before != now:
                other = f": {name} was {before!r}, now {now!r}"
                if name == "quantization_config":
                    other = ", with other --bits, --quant-type or --double-quant"
                raise InputError(f"{self.path}: has answers of another run{other}; {_START_AGAIN}")

    def _checked(self, number: int, line: str, ids: list[Any]) -> dict[str, Any]:
        try:
            answer = json.loads(line)
            fits = number <= len(ids) and answer["id"] == ids[number - 1] and isinstance(answer["prediction"], str)
        except (ValueError, KeyError, TypeError):
            fits = False
        if not fits:
            raise InputError(
                f"{self.path}, line {number}: not the answer to record {number} of the data; {_START_AGAIN}"
            )
        return answer

    def _write_summary(self, result: Mapping[str, Any]) -> None:
        text = json.dumps({"settings": self.settings, **result}, indent=2, ensure_ascii=False) + "\n"
        write_durably(self.summary_path, text)


def model_identity(model_path: str) -> str:
    """What tells one model folder from another without reading all of it: names, sizes, times and the config.

    A hub id stands for itself.
    """
    folder = Path(model_path)
    if not folder.is_dir():
        return model_path
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in (".safetensors", ".bin"):
            state = file.stat()
            digest.update(f"{file.name} {state.st_size} {state.st_mtime_ns}\n".encode())
        elif file.name in ("config.json", "adapter_config.json", "tokenizer.json"):
            digest.update(f"{file.name} {file_sha256(file)}\n".encode())
    return digest.hexdigest()

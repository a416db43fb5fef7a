"""What is in a set of records: kinds, turns, answers, and what occurs more than once."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llava.samples.record import Record
from llava.samples.stored import json_of
from llava.samples.turns import ANSWER

KINDS = ("single image", "several images", "video", "text only", "malformed")


@dataclass(frozen=True)
class Place:
    """Where a record is: the data path that was given, its number there (from 0) and its id, if it has one."""

    data: str
    number: int
    id: Any = None

    def as_dict(self) -> dict[str, Any]:
        return {"data": self.data, "number": self.number, "id": self.id}


class Survey:
    """Counts records as they come by; of texts it keeps digests, and answers once each."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
        self.turns = 0
        self.answers: Counter[str] = Counter()
        self.empty_answers: list[Place] = []
        self._ids: dict[str, list[Place]] = defaultdict(list)
        self._contents: dict[bytes, list[Place]] = defaultdict(list)
        self._replies: dict[bytes, dict[bytes, list[Place]]] = defaultdict(lambda: defaultdict(list))

    def add(self, place: Place, raw: Mapping[str, Any], record: Record | None) -> None:
        """Take a record; `record` is how training reads it, None when it is malformed."""
        if raw.get("id") is not None:
            self._ids[json.dumps(raw["id"], sort_keys=True)].append(place)
        self._contents[_digest({key: value for key, value in raw.items() if key != "id"})].append(place)
        self.kinds["malformed" if record is None else _kind(record)] += 1
        if record is not None:
            self._add_turns(place, record)

    def _add_turns(self, place: Place, record: Record) -> None:
        turns, media = record.turns, [record.images, record.video]
        self.turns += len(turns)
        answers = [turn["value"] for turn in turns if turn["from"] == ANSWER]
        self.answers.update(answers)
        if any(not answer.strip() for answer in answers):
            self.empty_answers.append(place)
        for number, turn in enumerate(turns if record.has_media else ()):
            if turn["from"] == ANSWER:
                asked = _digest([media, [[t["from"], t["value"]] for t in turns[:number]]])
                self._replies[asked][_digest(turn["value"])].append(place)

    @property
    def same_id(self) -> list[list[Place]]:
        """Records that share an id."""
        return _repeated(self._ids.values())

    @property
    def identical(self) -> list[list[Place]]:
        """Records that are equal in everything but perhaps their id."""
        return _repeated(self._contents.values())

    @property
    def contradicting(self) -> list[list[Place]]:
        """Records with the same image or video and the same text up to an answer, which differs; one of each answer."""
        return [[places[0] for places in replies.values()] for replies in self._replies.values() if len(replies) > 1]


def _kind(record: Record) -> str:
    if record.images:
        return "several images" if len(record.images) > 1 else "single image"
    return "video" if record.video is not None else "text only"


def _digest(value: Any) -> bytes:
    return hashlib.blake2b(json.dumps(value, sort_keys=True, default=json_of).encode(), digest_size=16).digest()


def _repeated(groups: Iterable[list[Place]]) -> list[list[Place]]:
    return [group for group in groups if len(group) > 1]

"""A journal's records: one a step, of fixed size, and what they did to the weights.

docs/journal_format.md describes them byte by byte. All numbers are little-endian. A record is

    u32 step    u32 flags    p x f64 loss    k x f64 learning rate    u32 checksum

with p losses, in the order of the estimator's points, and k distinct learning rates: 36 bytes for two and one. Seeds
and updates follow from the header (`algorithms/course.py`). The checksum is the CRC-32 of the record before it,
continued from the checksum of the previous record (of the header's bytes, for the first one), so that a record that was
changed, moved, dropped or brought in from elsewhere does not check.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llava.mezo.algorithms.course import Course, Proposal
from llava.mezo.errors import JournalError
from llava.mezo.journal.header import Header
from llava.mezo.updates import Update, can_be_applied, update_of

APPLIED = 1
"""Flag of a step that was applied; a step with a loss that is not finite was not."""
_FIXED, _NUMBER, _CHECKSUM = (struct.Struct(code) for code in ("<II", "<d", "<I"))


@dataclass(frozen=True)
class Record:
    """One optimizer step."""

    step: int
    applied: bool
    losses: tuple[float, ...]
    """At the estimator's points, in their order."""
    rates: tuple[float, ...]

    @property
    def loss(self) -> float:
        """Mean of all losses of the step."""
        return sum(self.losses) / len(self.losses)


def encode(record: Record, previous: int) -> bytes:
    """The record's bytes after a record with checksum `previous`."""
    body = _FIXED.pack(record.step, APPLIED if record.applied else 0)
    body += b"".join(map(_NUMBER.pack, (*record.losses, *record.rates)))
    return body + _CHECKSUM.pack(zlib.crc32(body, previous))


def checksum_of(data: bytes) -> int:
    """The checksum at the end of a record."""
    return int(_CHECKSUM.unpack_from(data, len(data) - _CHECKSUM.size)[0])


def decode(header: Header, data: bytes, number: int, previous: int) -> Record:
    """Record `number` (0 for the first) from its bytes.

    Raises:
        JournalError: a checksum, step, flag, loss or learning rate is not what it has to be.
    """
    body, checksum = data[: -_CHECKSUM.size], checksum_of(data)
    expected = zlib.crc32(body, previous)
    if checksum != expected:
        raise JournalError(
            f"record {number} does not check (checksum {checksum:08x}, expected {expected:08x}): it was changed, moved "
            "or put in from another journal, or records before it are missing"
        )
    step, flags = _FIXED.unpack_from(body)
    numbers = tuple(value for (value,) in _NUMBER.iter_unpack(body[_FIXED.size :]))
    record = Record(step, bool(flags & APPLIED), numbers[: header.losses], numbers[header.losses :])
    _check_record(record, flags, number)
    return record


def _check_record(record: Record, flags: int, number: int) -> None:
    if record.step != number:
        raise JournalError(f"record {number} is of step {record.step}")
    if flags & ~APPLIED:
        raise JournalError(f"record {number} has unknown flags {flags:#x}")
    if not all(math.isfinite(rate) and rate >= 0 for rate in record.rates):
        raise JournalError(f"record {number} has learning rates {record.rates}; they must be finite and at least 0")
    if record.applied and not all(map(math.isfinite, record.losses)):
        raise JournalError(f"record {number} was applied with losses that are not finite")


def updates_of(header: Header, records: Sequence[Record], course: Course) -> Iterator[Update]:
    """What the records did to the weights, in order.

    Args:
        course: of the records before these; it takes them.

    Raises:
        JournalError: a step was applied whose update is not finite.
    """
    decays = [group.weight_decay for group in header.groups]
    for record, proposal in applied_steps(records, course):
        update = update_of(proposal.moves, [record.rates[group.rate] for group in header.groups], decays)
        if not can_be_applied(proposal, update):
            raise JournalError(f"record {record.step} was applied with an update that is not finite")
        yield update


def applied_steps(records: Sequence[Record], course: Course) -> Iterator[tuple[Record, Proposal]]:
    """The records of steps that were applied, with what they came to; `course`, of those before, takes them."""
    for record in records:
        if record.applied:
            proposal = course.propose(record.step, record.losses)
            yield record, proposal
            course.take(proposal)

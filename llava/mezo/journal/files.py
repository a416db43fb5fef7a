"""A run's journal on disk: its base model and these few bytes a step give back the weights of every step.

The folder, `OUTPUT_DIR/mezo_journal`, holds header.json (`header.py`), records.bin (`records.py`) and, for a run that
branched off from another one, the folder `parent` with that run's journal up to there. A run that went back to an
earlier step keeps there what it had (`kept.py`).
"""

from __future__ import annotations

import logging
import os
import shutil
import time
import zlib
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path

from llava.mezo.durable import write_durably
from llava.mezo.errors import JournalError, naming
from llava.mezo.journal.header import CHECKSUM_BYTES, LARGEST_HEADER, Header, Parent, parse_header
from llava.mezo.journal.kept import kept_journals
from llava.mezo.journal.locking import FolderLock
from llava.mezo.journal.records import Record, checksum_of, decode, encode

logger = logging.getLogger(__name__)

JOURNAL_FOLDER = "mezo_journal"
"""What a run calls the folder of its journal."""
HEADER, RECORDS, PARENT = "header.json", "records.bin", "parent"
SYNC_SECONDS = 1.0
"""How often records are brought to the disk where that takes long; the operating system has each of them at once."""
QUICK_SYNC = 1e-3
"""Seconds below which bringing a record to the disk does not hold up a step."""


class Journal:
    """Header and records of a run; opened for writing, it takes further records.

    `read` and `open` make one. Either raises JournalError, with the file and record, for whatever does not check; a
    record that was cut off while it was written, which can only be the last one, is left out.
    """

    def __init__(self, folder: Path, header: Header, records: list[Record], checksums: list[int], torn: int) -> None:
        self.folder = folder
        self.header = header
        self.records = records
        self.checksums = checksums
        """That of the header, then that of each record."""
        self.torn = torn
        """Bytes at the end of the file that are no whole record."""
        self.parent = _read_parent(folder, header.parent)
        self._file: int | None = None
        self._lock: FolderLock | None = None
        self.sync_steps: int | None = None
        """After how many records they are brought to the disk; None: each if that is quick, else once a second."""
        self._writes = True
        self._synced, self._unsynced = time.monotonic(), 0
        self._sync_seconds = 0.0

    @classmethod
    def read(cls, folder: Path) -> Journal:
        """The journal in `folder`, every field and checksum verified, its parents' too."""
        header_bytes, data = _contents(folder / HEADER, LARGEST_HEADER), _contents(folder / RECORDS)
        with naming(folder):
            header = parse_header(header_bytes)
            data = _that_count(folder, header, data)
            records, checksums = _decode_all(header, data, zlib.crc32(header_bytes))
        return cls(folder, header, records, checksums, len(data) - len(records) * header.record_bytes)

    @classmethod
    def open(
        cls, folder: Path, header: Header, parent: Journal | None = None, first: int = 0, lock: FolderLock | None = None
    ) -> Journal:
        """The journal in `folder` for writing: a new one, or the one that is there if it is of this very run.

        A new one may find files in the folder that belong to the model; they stay.

        Args:
            parent, first: a new journal begins after that many records of `parent`, of which it takes a copy.
            lock: of the folder, if the caller has it already; it is released when the journal is closed.
        """
        lock = lock or FolderLock(folder)
        try:
            if not (folder / HEADER).exists():
                _create(folder, header, parent, first)
            journal = cls.read(folder)
            _check_same(journal, header)
            journal._open_file()
        except BaseException:
            lock.release()
            raise
        journal._lock = lock
        return journal

    @classmethod
    def follow(cls, folder: Path, header: Header) -> Journal:
        """The journal that another rank of this run writes: records are appended in memory alone."""
        journal = cls.read(folder)
        _check_same(journal, header)
        journal._writes = False
        return journal

    def append(self, record: Record) -> None:
        """Write a record: the step is done once this returns. JournalError if it cannot be; nothing is lost then."""
        if record.step != len(self.records):
            raise JournalError(f"{self.folder}: step {record.step} cannot follow {len(self.records)} records")
        data = encode(record, self.checksum)
        if self._writes:
            self._write(data, record.step)
        self.records.append(record)
        self.checksums.append(checksum_of(data))

    @property
    def checksum(self) -> int:
        """Of the last record, or of the header if there is none."""
        return self.checksums[-1]

    def _write(self, data: bytes, step: int) -> None:
        if self._file is None:
            raise JournalError(f"{self.folder} is not open for writing")
        try:
            rest = data
            while rest:
                rest = rest[os.write(self._file, rest) :]
            self._unsynced += 1
            if self._due():
                self.sync()
        except OSError as error:
            with suppress(OSError):  # a reader leaves out what is no whole record
                os.ftruncate(self._file, len(self.records) * self.header.record_bytes)
            raise JournalError(
                f"{self.folder / RECORDS}: step {step} cannot be recorded ({error.strerror}) and was not applied; "
                "all steps before it are safe. Make room and start the same run again, it goes on from there"
            ) from error

    def _due(self) -> bool:
        """Whether records are to be brought to the disk now."""
        if self.sync_steps is not None:
            return self._unsynced >= self.sync_steps
        return self._sync_seconds < QUICK_SYNC or time.monotonic() - self._synced >= SYNC_SECONDS

    def sync(self) -> None:
        """Bring all records to the disk. Until then a power cut may lose them; the end of the process does not."""
        if self._file is not None:
            before = time.monotonic()
            os.fsync(self._file)
            self._synced, self._unsynced = time.monotonic(), 0
            self._sync_seconds += 0.1 * (self._synced - before - self._sync_seconds)

    def close(self) -> None:
        """Bring everything to the disk and let go of the folder; further calls do nothing."""
        if self._file is not None:
            self.sync()
            os.close(self._file)
            self._file = None
        if self._lock is not None:
            self._lock.release()

    def chain(self) -> list[Journal]:
        """The journals from the base model on, this one last."""
        return [*(self.parent.chain() if self.parent else []), self]

    def _open_file(self) -> None:
        path = self.folder / RECORDS
        try:
            if self.torn:
                logger.warning("%s: the last record was cut off while it was written; it is left out", path)
                self.torn = 0
            self._file = os.open(path, os.O_RDWR | os.O_APPEND)
            os.ftruncate(self._file, len(self.records) * self.header.record_bytes)
            os.fsync(self._file)  # no record follows bytes that are to go
        except OSError as error:
            raise JournalError(f"{path} cannot be written to ({error.strerror})") from error


def _contents(path: Path, most: int | None = None) -> bytes:
    try:
        if most is not None and path.stat().st_size > most:
            raise JournalError(f"{path} has {path.stat().st_size} bytes; a header has at most {most}")
        return path.read_bytes()
    except FileNotFoundError as error:
        inside = path.parent / JOURNAL_FOLDER
        hint = f"; give {inside}" if inside.is_dir() else ""
        raise JournalError(f"{path} is missing: {path.parent} is no journal, or not a whole one{hint}") from error
    except OSError as error:
        raise JournalError(f"{path} cannot be read ({error.strerror})") from error


def _that_count(folder: Path, header: Header, data: bytes) -> bytes:
    """The records without those that the run has gone back behind, before it could cut them off."""
    for kept in kept_journals(folder)[-1:]:
        if data.startswith(_contents(kept.inside(folder) / RECORDS)):  # with another rate none would be the same
            return data[: kept.back_to * header.record_bytes]
    return data


def _decode_all(header: Header, data: bytes, checksum: int) -> tuple[list[Record], list[int]]:
    """The records and all checksums, without what was cut off: a part of a record, or zeros after a power cut."""
    size, end = header.record_bytes, len(data.rstrip(b"\0"))
    records: list[Record] = []
    checksums = [checksum]
    for number in range(min(len(data) // size, -(-end // size))):
        start, stop = number * size, (number + 1) * size
        try:
            records.append(decode(header, data[start:stop], number, checksums[-1]))
        except JournalError:
            ends_in_zeros = end <= stop - CHECKSUM_BYTES or (end <= stop and len(data) > stop)
            if ends_in_zeros:  # the page that held the rest of it never reached the disk
                break
            raise
        checksums.append(checksum_of(data[start:stop]))
    return records, checksums


def _read_parent(folder: Path, expected: Parent | None) -> Journal | None:
    if expected is None:
        return None
    parent = Journal.read(folder / PARENT)
    if (len(parent.records), parent.checksum) != (expected.steps, expected.checksum):
        raise JournalError(
            f"{folder / PARENT} has {len(parent.records)} records and ends with checksum {parent.checksum:08x}; the "
            f"header of {folder} expects {expected.steps} and {expected.checksum:08x}"
        )
    return parent


def _create(folder: Path, header: Header, parent: Journal | None, first: int) -> None:
    """header.json comes last and at once: without it there is no journal yet."""
    try:
        shutil.rmtree(folder / PARENT, ignore_errors=True)  # of a run that was killed right here
        if parent is not None:
            header = replace(header, parent=copy_beginning(parent, folder / PARENT, first))
        write_durably(folder / RECORDS, b"")
        write_durably(folder / HEADER, header.to_bytes())
    except OSError as error:
        raise JournalError(f"{folder}: the journal cannot be made ({error.strerror})") from error


def copy_beginning(journal: Journal, folder: Path, count: int) -> Parent:
    """The first `count` records of a journal, and its parents, as another one in a new folder."""
    folder.mkdir()
    if journal.parent is not None:
        copy_beginning(journal.parent, folder / PARENT, len(journal.parent.records))
    write_durably(folder / RECORDS, (journal.folder / RECORDS).read_bytes()[: count * journal.header.record_bytes])
    write_durably(folder / HEADER, (journal.folder / HEADER).read_bytes())
    return Parent(count, journal.checksums[count])


def _check_same(journal: Journal, header: Header) -> None:
    for field in fields(Header):
        there, here = getattr(journal.header, field.name), getattr(header, field.name)
        if there == here or field.name in ("model", "parent"):
            continue
        if field.name == "fingerprint":
            raise JournalError(
                f"{journal.folder} starts from {journal.header.model} with the fingerprint {there}; the model that is "
                f"given, {header.model}, has {here}. Give the one that the run was started with"
            )
        what = f"another {field.name}"
        if field.name == "sizes" and there and here:  # names are the same, they come before
            k = next(k for k, pair in enumerate(zip(there, here, strict=True)) if pair[0] != pair[1])
            what, there, here = f"another size of noise (--zo_tensor_scales) of {header.names[k]}", there[k], here[k]
        raise JournalError(
            f"{journal.folder} is of a run with {what}: {_brief(there)} there, {_brief(here)} here. "
            "Choose another --output_dir, go on with the settings it has, or branch off with --zo_from_journal"
        )


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]} ..."

"""Whose OUTPUT_DIR is on the same disk, and the journal of a run on every disk.

The ranks of one machine, or of all machines with a shared disk, see one OUTPUT_DIR; a machine without one has its own.
The lowest rank of a disk is its owner: it writes the journal there, the same records as the main process. When a run
begins or goes on, the disk with the most records (of those that went back most often) gives the others what they lack,
so that a machine that joins late, or comes back after a while, is as well off as those that were there, and a run
outlives any of its disks but the last.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from llava.mezo.errors import InputError
from llava.mezo.journal.files import HEADER, JOURNAL_FOLDER, RECORDS, Journal
from llava.mezo.journal.kept import kept_journals
from llava.mezo.journal.locking import LOCK
from llava.mezo.messages import exchanged, handed_out, raising_together, rank_and_count

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")
CHUNK = 2**26
"""Bytes of a file that are under way at a time."""
END_SECONDS = 60.0
"""How long torchrun may take to end a process that it has replaced on another machine."""
INCOMING = ".incoming"
"""What is on its way from another disk ends with it; it stands for nothing."""


@dataclass(frozen=True)
class Disks:
    """Of a run's OUTPUT_DIR, seen from one rank."""

    rank: int = 0
    owners: tuple[int, ...] = (0,)
    """For each rank, the lowest rank with the same disk."""
    device: torch.device = CPU

    @property
    def is_owner(self) -> bool:
        """Whether this rank is the one that writes to its disk."""
        return self.owners[self.rank] == self.rank

    @property
    def several(self) -> bool:
        """Whether some rank does not see what the main process writes."""
        return len(set(self.owners)) > 1

    @property
    def writes(self) -> bool:
        """Whether this rank writes what the main process does, to a disk that the main process does not see."""
        return self.several and self.is_owner and self.rank != 0

    @classmethod
    def find(cls, folder: Path, device: torch.device) -> Disks:
        """Those of `folder`, which is made: each rank leaves a mark there, and looks whose it sees.

        Raises:
            InputError: a rank can neither write there nor see what others write.
        """
        rank, ranks = rank_and_count()
        if ranks == 1:
            return cls(device=device)
        token = handed_out(os.urandom(8).hex().encode(), 0, device)
        mark = f".disk-{token.decode()}-"
        with raising_together(device):
            reason = _leave(folder, f"{mark}{rank}")
            exchanged(b"", device)  # all have left theirs
            seen = [int(path.name.removeprefix(mark)) for path in folder.glob(f"{mark}*")]
            if not seen:
                raise InputError(
                    f"--output_dir {folder} cannot be written to ({reason}): set OUTPUT_DIR or give another"
                )
        exchanged(b"", device)  # all have looked
        (folder / f"{mark}{rank}").unlink(missing_ok=True)
        return cls(rank, tuple(int(owner) for owner in exchanged(str(min(seen)).encode(), device)), device)

    def level(self, output_dir: Path, beside: Sequence[str] = ()) -> None:
        """Bring every disk's journal in `output_dir` to the state of the one that is furthest.

        Args:
            beside: names of files in `output_dir` that belong to it.

        Raises:
            InputError: they are not of one run.
        """
        if not self.several:
            return
        journal = output_dir / JOURNAL_FOLDER
        with raising_together(self.device):
            have = len(Journal.read(journal).records) if self.is_owner and (journal / HEADER).exists() else -1
        times = len(kept_journals(journal)) if have >= 0 else 0
        counts = [json.loads(told) for told in exchanged(json.dumps([times, have]).encode(), self.device)]
        most = max(counts)
        if most[1] < 0:
            return
        source = counts.index(most)
        self._check_alike(journal, source, have, most[0])
        if self.rank == source and counts.count(most) < len(set(self.owners)):
            logger.info("the journal, %d steps, goes to the machines that have fewer of them", most[1])
        if self.is_owner and self.rank != source and journal.is_dir():
            for left in journal.glob("resume-*"):
                shutil.rmtree(left)  # of another time; those of the source come with the rest
        # records before what was gone back in (diverged-N): with that alone, older ones would count as newer ones
        names = sorted((path.name for path in journal.iterdir()), reverse=True) if self.rank == source else []
        names = [n for n in names if n not in (LOCK, HEADER) and not n.endswith((INCOMING, ".partial"))]
        self.copy(journal, json.loads(handed_out(json.dumps([*names, HEADER]).encode(), source, self.device)), source)
        self.copy(output_dir, beside, source)

    def copy(self, folder: Path, names: Sequence[str], source: int = 0) -> None:
        """Files and folders of rank `source`'s `folder` onto the other disks, one after the other; absent ones go."""
        if not self.several:
            return
        gives, takes = self.rank == source, self.is_owner and self.owners[source] != self.rank
        for name in names:
            target = folder / name
            files = json.loads(handed_out(json.dumps(_files(target) if gives else []).encode(), source, self.device))
            incoming = folder / f"{name}{INCOMING}"
            if takes:
                folder.mkdir(parents=True, exist_ok=True)
                if incoming.is_dir():
                    shutil.rmtree(incoming)  # of a start that was killed
                incoming.unlink(missing_ok=True)
            for file in files:
                self._copy_file(target / file if gives else None, incoming / file if takes else None, source)
            if takes:
                if target.is_dir():
                    shutil.rmtree(target)
                incoming.replace(target) if files else target.unlink(missing_ok=True)

    def _copy_file(self, path: Path | None, to: Path | None, source: int) -> None:
        """From `path`, on rank `source`, to `to`, where it is wanted; a piece at a time."""
        size = int(handed_out(str(path.stat().st_size if path else 0).encode(), source, self.device))
        with contextlib.ExitStack() as files:
            reader = None if path is None else files.enter_context(path.open("rb"))
            if to is not None:
                to.parent.mkdir(parents=True, exist_ok=True)
            writer = None if to is None else files.enter_context(to.open("wb"))
            for _ in range(0, size, CHUNK):
                piece = handed_out(b"" if reader is None else reader.read(CHUNK), source, self.device)
                if writer is not None:
                    writer.write(piece)
            if writer is not None:
                writer.flush()
                os.fsync(writer.fileno())

    def _check_alike(self, journal: Path, source: int, have: int, times: int) -> None:
        """`InputError` where a journal here is no beginning of that of `source`, or of one that it has gone back in."""
        there, gives = [journal] * (1 + times), self.rank == source
        if gives:
            there[1:] = [kept.inside(journal) for kept in kept_journals(journal)]
        files = [journal / HEADER, *(folder / RECORDS for folder in there)]
        header, *ways = [handed_out(file.read_bytes() if gives else b"", source, self.device) for file in files]
        with raising_together(self.device):
            if have < 0:
                return
            mine = Journal.read(journal)
            size = have * mine.header.record_bytes
            own = (journal / RECORDS).read_bytes()[:size]
            if (journal / HEADER).read_bytes() != header or not any(records[:size] == own for records in ways):
                raise InputError(
                    f"{journal} is not of the run that rank {source} has there, with more steps: remove it, or give "
                    "each of them an --output_dir of its own run"
                )


def _leave(folder: Path, name: str) -> str:
    """Makes an empty file; why it could not, or nothing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    except OSError as error:
        return str(error.strerror)
    return ""


def _files(path: Path) -> list[str]:
    """The files of a folder by their paths in it; "" for a file; none where there is nothing."""
    if path.is_dir():
        return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file() and file.name != LOCK)
    return [""] if path.exists() else []


def patience_of_launcher() -> float:
    """Seconds that a run waits for another: a launcher may start it on one machine before it has ended on another."""
    return END_SECONDS if "TORCHELASTIC_RUN_ID" in os.environ else 0.0

"""Look at a run's journal.

    python -m llava.mezo.journal show DIR [--last N] [--json]      the records as a table, or one JSON object each
    python -m llava.mezo.journal check DIR                         verify every field and checksum; exit code 2 if bad

DIR is `OUTPUT_DIR/mezo_journal`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from llava.mezo.command_line import Parser
from llava.mezo.errors import JournalError
from llava.mezo.journal.files import Journal
from llava.mezo.journal.records import Record


def _table(journal: Journal, records: Sequence[Record]) -> Iterator[str]:
    header = journal.header
    yield f"model {header.model}, {len(header.names)} trained parameters, storage {header.storage}, eps {header.eps}"
    yield f"estimator {header.estimator}, {header.num_directions} directions, noise {header.noise}, rule {header.rule}"
    if header.parent is not None:
        yield f"branched off after step {header.parent.steps} of its parent"
    yield f"{'step':>7} {'applied':>7} {'losses':>12}  {'learning rates'}"
    for record in records:
        rates = " ".join(f"{rate:.4g}" for rate in record.rates)
        losses = " ".join(f"{loss:>12.6f}" for loss in record.losses)
        applied = "yes" if record.applied else "no"
        yield f"{record.step:>7} {applied:>7} {losses}  {rates}"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("show", "check"))
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--last", type=int, metavar="N", help="show the last N records alone")
    parser.add_argument("--json", action="store_true", help="header and records as JSON, a line each")
    options = parser.parse_args(argv)
    if options.last is not None and options.last < 0:
        parser.error(f"--last {options.last} must be at least 0")
    try:
        journal = Journal.read(options.folder)
    except JournalError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    records = journal.records if options.last is None else journal.records[-options.last :] if options.last > 0 else []
    if options.what == "check":
        torn = f"; {journal.torn} bytes of a record that was cut off are left out" if journal.torn else ""
        sys.stdout.write(f"{options.folder}: {len(journal.records)} records, all in order{torn}\n")
    elif options.json:
        lines = [asdict(journal.header), *map(asdict, records)]
        sys.stdout.writelines(json.dumps(line) + "\n" for line in lines)
    else:
        sys.stdout.writelines(line + "\n" for line in _table(journal, records))
    return 0


if __name__ == "__main__":
    sys.exit(main())

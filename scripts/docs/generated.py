"""A document that a script writes: to its file, or compared with what the file has."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def write_or_check(script: str, default: Path, text_of: Callable[[], str]) -> None:
    """The command line of such a script.

    Args:
        script: its name in this folder, for the line that says how to mend a document.
        default: the document, where `--output` does not name another file.
        text_of: makes the whole text; a SystemExit of it ends the command with that line.

    Raises:
        SystemExit: with `--check`, the file is missing or has another text; exit code 1.
    """
    parser = argparse.ArgumentParser(description=f"Write {default.relative_to(ROOT)}.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the file is out of date")
    parser.add_argument("--output", type=Path, default=default, help="the file, if it is another one")
    options = parser.parse_args()
    text = text_of()
    if not options.check:
        options.output.write_text(text, encoding="utf-8")
    elif not options.output.exists() or options.output.read_text(encoding="utf-8") != text:
        raise SystemExit(f"{options.output} is out of date: run python scripts/docs/{script}")


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; a | in a cell is escaped."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in lines) + "\n"

"""The branch has what runs there, and all of it: no import leads out of it, and every module is come to."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "upstream"))

import mezo_files  # noqa: E402

OURS = ("llava.mezo", "llava.train.zo")
ENTRIES = ("llava.train.zo.trainer", "llava.train.zo.settings", "llava.mezo.journal.__main__", "llava.mezo.replay")
"""What train.py imports there, and the commands."""
FOR_TESTS = {"llava.mezo.reference", "llava.mezo.kernels.agreement"}
TEXTS = {path: content.decode() for path, content in mezo_files.new_files().items()}
MODULES = {
    path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): text
    for path, text in TEXTS.items()
    if path.startswith("llava/")
}


def imported(text: str) -> Iterator[str]:
    """Modules of the engine and its trainer that a file imports, within functions too."""
    for node in ast.walk(ast.parse(text)):
        names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        if isinstance(node, ast.ImportFrom):
            inside = [f"{node.module}.{name}" for name in names]
            names = [name if _is_module(name) else str(node.module) for name in inside]
        yield from (name for name in names if name.startswith(OURS))


def _is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").exists() or path.is_dir()


def reached(entries: tuple[str, ...]) -> set[str]:
    """What these import, each with its packages."""
    found: set[str] = set()
    waiting = list(entries)
    while waiting:
        name = waiting.pop()
        if name in MODULES and name not in found:
            found.add(name)
            waiting += [*imported(MODULES[name]), name.rpartition(".")[0]]
    return found


def test_no_import_leads_out_of_the_branch() -> None:
    wrong = {(path, name) for path, text in TEXTS.items() if path.endswith(".py") for name in imported(text)}
    assert {pair for pair in wrong if pair[1] not in MODULES} == set()


def test_every_module_of_the_branch_is_come_to() -> None:
    assert set(MODULES) - reached(ENTRIES) == FOR_TESTS


def test_what_stays_is_there() -> None:
    """A pattern that fits nothing would leave nothing out."""
    for pattern in mezo_files.STAY:
        files = list(ROOT.glob(pattern))
        assert files and not {str(file.relative_to(ROOT)) for file in files} & TEXTS.keys(), pattern

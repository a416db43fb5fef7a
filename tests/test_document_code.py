"""Python in the documents runs when it is pasted."""

from __future__ import annotations

import ast
import builtins
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
GOES_ON = "# goes on from "
"""Stands in a block that needs the names of the one above it in the same document."""
NEEDS_FILES = ("README.md", "adapters.md", "checkpoints.md")
"""Their blocks load models that the commands around them make: of these the names alone are looked at."""


def blocks(document: Path) -> list[str]:
    """Each with what it goes on from in front."""
    found: list[str] = []
    for _, text in re.findall(
        r"^( *)```python\n(.*?)^\1```", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    ):
        code = textwrap.dedent(text)
        found.append(found[-1] + code if GOES_ON in code else code)
    return found


BLOCKS = [
    pytest.param(document, code, id=f"{document.name}-{number}")
    for document in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for number, code in enumerate(blocks(document))
]


def unknown(code: str) -> set[str]:
    """Names that are read and come from nowhere."""
    nodes = list(ast.walk(ast.parse(code)))
    names = [node for node in nodes if isinstance(node, ast.Name)]
    known = {node.id for node in names if isinstance(node.ctx, ast.Store)} | set(dir(builtins))
    known |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    known |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            known |= {one.asname or one.name.split(".")[0] for one in node.names}
    return {node.id for node in names} - known


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 6


def test_unknown_names_are_found() -> None:
    assert unknown("import os\nfor x in os.sep:\n    print(x, [y for y in z])") == {"z"}


@pytest.mark.parametrize(("document", "code"), BLOCKS)
def test_every_name_comes_from_somewhere(document: Path, code: str) -> None:
    assert not unknown(code)


@pytest.mark.parametrize(("document", "code"), [one for one in BLOCKS if one.values[0].name not in NEEDS_FILES])
def test_it_runs(document: Path, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(compile(code, document.name, "exec"), names)
    if "mean_loss" in names:
        assert names["mean_loss"] < 2  # it learns; 8 is what an answer of 0 has

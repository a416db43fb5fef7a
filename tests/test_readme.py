"""The README's file tree, links and commands stay true."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def tree() -> set[str]:
    """Paths of the block under the heading on the files; a line ends in / for a folder."""
    block = re.search(r"## The files\n.*?```\n(.*?)```", README, re.DOTALL)
    assert block is not None
    paths: set[str] = set()
    parts: list[str] = []
    for line in block[1].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        parts[depth:] = [line.split()[0]]
        paths.add("".join(parts))
    return paths


def tracked() -> set[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    return {name for name in names if name and (ROOT / name).exists()}


def test_every_path_of_the_tree_exists() -> None:
    paths = tree()
    assert len(paths) > 40
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert not missing


def test_every_module_is_in_the_tree() -> None:
    paths = tree()
    folders = {path for path in paths if path.endswith("/")}
    listed_fully = {folder for folder in folders if any(p != folder and p.startswith(folder) for p in paths)}
    for name in tracked():
        if name.startswith("llava/") and name.endswith(".py") and not name.endswith("__init__.py"):
            parent = name.rsplit("/", 1)[0] + "/"
            assert name in paths or (parent in folders and parent not in listed_fully), f"{name} is not in the README"


def test_links_lead_somewhere() -> None:
    for document in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_top_level_is_as_documented() -> None:
    top = {name.split("/")[0] for name in tracked()}
    assert top == {
        *("llava", "scripts", "playground", "docs", "tests"),
        *("pyproject.toml", "README.md", "LICENSE", ".gitignore", ".ci"),
    }

"""The README stays short and true: its rooms, its links, and the paths and modules that documents name."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
HISTORY = ("CHANGELOG.md", "log.md")  # these name what was there once
ELSEWHERE = ("docs/MeZO.md", "llava/train/train_dpo.py")  # in LLaVA-NeXT
MOST_LINES, LONGEST_LINE = 130, 132

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)


def rooms() -> set[str]:
    """What stands as code under the heading on the files, before the imports."""
    block = README.split("## The files\n")[1].split("[docs/modules.md]")[0]
    return set(re.findall(r"`([^`]*)`", block))


def tracked() -> set[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    return {name for name in names if name and (ROOT / name).exists()}


def anchors(document: Path) -> set[str]:
    """What a link to a heading of a document may end in, as GitHub makes it."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def exists(dotted: str) -> bool:
    """Whether `llava.a.b` is a module, or a name that the module before it has."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        folder = ROOT.joinpath(*parts[:count])
        for file in (folder.with_suffix(".py"), folder / "__init__.py"):
            if file.exists():
                text = file.read_text(encoding="utf-8")
                return count == len(parts) or re.search(rf"\b{parts[count]}\b", text) is not None
    return False


def test_it_is_short() -> None:
    lines = README.splitlines()
    assert len(lines) <= MOST_LINES
    assert not [line for line in lines if len(line) > LONGEST_LINE]


def test_the_rooms_are_those_of_the_tree() -> None:
    named = {file.parent.name for file in (ROOT / "llava").glob("*/__init__.py")}
    assert rooms() == {"llava/", *named, "scripts/", "playground/"}


def test_layers_are_those_that_imports_are_tested_by() -> None:
    nodes = ast.parse((ROOT / "tests" / "test_imports.py").read_text(encoding="utf-8")).body
    (layers,) = (
        ast.literal_eval(node.value)
        for node in nodes
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LAYERS"
    )
    said = re.search(r"Imports go one way: (.*?)\.\n\n", README, re.DOTALL)
    assert said is not None
    assert [set(part.split(", ")) for part in " ".join(said[1].split()).split(" <- ")] == [
        {name.removeprefix("llava.") for name in layer} for layer in layers
    ]


@each_document
def test_links_lead_somewhere(document: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", document.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        file = document.parent / target if target else document
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


@pytest.mark.parametrize("document", [one for one in DOCUMENTS if one.name not in HISTORY], ids=lambda one: one.name)
def test_modules_and_paths_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    dotted = set(re.findall(r"\bllava(?:\.[A-Za-z_]\w*)+", text))
    paths = set(re.findall(r"\b(?:llava|scripts|tests|docs)/[\w/.-]*\w\.(?:py|sh|md|png)\b", text)) - set(ELSEWHERE)
    assert not {name for name in dotted if not exists(name)}
    assert not {path for path in paths if "NAME" not in path and not (ROOT / path).exists()}


@pytest.mark.parametrize("name", ["README.md", "docs/reproduction.md"])
def test_sources_are_named(name: str) -> None:
    sources = (ROOT / name).read_text(encoding="utf-8").split("## Sources\n")[1]
    for link in ("arxiv.org/abs/2305.17333", "arxiv.org/abs/2408.03326", "LLaVA-NeXT", "tatarinovst2/course-work-5"):
        assert link in sources


def test_top_level_is_as_documented() -> None:
    top = {name.split("/")[0] for name in tracked()}
    assert top == {
        *("llava", "scripts", "playground", "docs", "tests"),
        *("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", ".gitignore", ".ci"),
    }

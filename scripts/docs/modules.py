"""docs/modules.md: what each module is for, by room, from the first sentence of its docstring.

    python scripts/docs/modules.py              writes the file
    python scripts/docs/modules.py --check      exits with 1 if it is out of date

A room is a package below llava/, or a folder of scripts. Rooms are in the order of the layers of tests/test_imports.py;
what a room holds is said by the docstring of its `__init__.py`, and for scripts by `SCRIPTS` here. Nothing is imported.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from generated import ROOT, table, write_or_check

DOCUMENT = ROOT / "docs" / "modules.md"
LAYERS_FILE = ROOT / "tests" / "test_imports.py"
SCRIPTS = {
    "scripts": "The tests with all that they need, and what other scripts share.",
    "scripts/train": "Whole runs: MeZO, AdamW, and the pre-training of the tiny checkpoint.",
    "scripts/study": "The experiments of docs/reproduction.md, a command each.",
    "scripts/benchmark": "Time and memory of a step, for docs/performance.md.",
    "scripts/docs": "Documents that are made of the code: this one, the flags, the picture of the demo.",
    "scripts/upstream": "A branch for LLaVA-NeXT, see docs/upstream_pr.md.",
}
"""The folders of scripts, in the order of the document."""
INTRODUCTION = """\
# Rooms and modules

Made by `python scripts/docs/modules.py` of the docstrings in the code; do not edit it here.

Rooms are in the order of the import layers: a module imports from its own layer and from those before it
(`tests/test_imports.py`). Where a new thing goes is in [CONTRIBUTING.md](CONTRIBUTING.md).
"""


def document() -> str:
    """The whole text."""
    packages = sorted({file.parent for file in (ROOT / "llava").rglob("*.py")}, key=_place)
    parts = [INTRODUCTION]
    for folder in packages:
        modules = sorted(file for file in folder.glob("*.py") if file.name != "__init__.py")
        parts.append(_room(folder, _sentence(folder / "__init__.py"), modules))
    unknown = {_name(file.parent) for file in (ROOT / "scripts").rglob("*.py")} - set(SCRIPTS)
    if unknown:
        raise SystemExit(f"SCRIPTS in scripts/docs/modules.py does not say what {', '.join(sorted(unknown))} is for")
    for name, sentence in SCRIPTS.items():
        files = sorted(file for file in (ROOT / name).iterdir() if file.suffix in (".py", ".sh"))
        parts.append(_room(ROOT / name, sentence, files))
    return "\n".join(parts)


def _room(folder: Path, sentence: str, files: list[Path]) -> str:
    title = f"## {_name(folder)}\n\n{sentence}\n"
    rows = [[f"[`{file.name}`](../{_name(file)})", _sentence(file)] for file in files]
    return title + ("\n" + table(["module", "what it is for"], rows) if rows else "")


def _place(package: Path) -> tuple[int, str]:
    """Where a package comes: by the first layer that a module of its own is in, then by name."""
    layers = _layers()
    files = [file for file in package.glob("*.py") if file.name != "__init__.py"] or [package]
    return min(_layer(_name(file).removesuffix(".py").replace("/", "."), layers) for file in files), _name(package)


def _layer(module: str, layers: list[set[str]]) -> int:
    """The layer with the longest name that fits."""
    fitting = {name: n for n, names in enumerate(layers) for name in names if f"{module}.".startswith(f"{name}.")}
    if not fitting:
        raise SystemExit(f"{module} is in none of the LAYERS of {_name(LAYERS_FILE)}")
    return fitting[max(fitting, key=len)]


def _layers() -> list[set[str]]:
    for node in ast.parse(LAYERS_FILE.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LAYERS":
            return [set(names) for names in ast.literal_eval(node.value)]
    raise SystemExit(f"{_name(LAYERS_FILE)} has no LAYERS")


def _sentence(file: Path) -> str:
    """The first sentence of a module's docstring, or of a shell script's first comment."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    if file.suffix == ".py":
        said = ast.get_docstring(ast.parse(text)) or ""
    else:
        lines = (line.strip() for line in text.splitlines() if not line.startswith("#!"))
        said = "\n".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
    if not said.strip():
        raise SystemExit(f"{_name(file)} does not begin with a line about what it is for")
    paragraph = " ".join(said.strip().split("\n\n")[0].split())
    return re.split(r"(?<=[.?!])\s+(?=[A-Z])", paragraph)[0]


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


if __name__ == "__main__":
    write_or_check("modules.py", DOCUMENT, document)

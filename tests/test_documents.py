"""Documents that are made of the code are up to date, and others repeat no more of it than they should."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import llava
from llava.train.flags.arguments import DataArguments, ModelArguments, TrainingArguments

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts" / "docs"
MOST_FLAGS = 10  # in the README
MOST_BYTES = 60_000


def script(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / name), *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("name", ["modules.py", "flags.py", "script_help.py"])
def test_made_documents_are_up_to_date(name: str) -> None:
    done = script(name, "--check")
    assert done.returncode == 0, done.stderr


def test_a_document_that_is_not_is_named(tmp_path: Path) -> None:
    document = tmp_path / "modules.md"
    missing = script("modules.py", "--check", "--output", str(document))
    assert not document.exists()
    assert script("modules.py", "--output", str(document)).returncode == 0
    assert script("modules.py", "--check", "--output", str(document)).returncode == 0
    document.write_text(document.read_text(encoding="utf-8") + "x", encoding="utf-8")
    changed = script("modules.py", "--check", "--output", str(document))
    for done in (missing, changed):
        assert done.returncode == 1
        assert done.stderr == f"{document} is out of date: run python scripts/docs/modules.py\n"


def test_modules_are_all_there() -> None:
    text = (ROOT / "docs" / "modules.md").read_text(encoding="utf-8")
    files = [*(ROOT / "llava").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]
    names = {file.relative_to(ROOT).as_posix() for file in files if file.name != "__init__.py"}
    assert set(re.findall(r"\]\(\.\./((?:llava|scripts)/[^)]*\.py)\)", text)) == names


def test_flags_of_the_readme_are_few_and_have_their_defaults() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split("## Flags that matter\n")[1].split("\n## ")[0]
    said = dict(re.findall(r"^\* `--(\w+)` \(default ([^,)]+)", section, re.MULTILINE))
    assert len(said) == section.count("\n* ") <= MOST_FLAGS
    assert "(docs/flags.md)" in section
    groups = (ModelArguments, DataArguments, TrainingArguments)
    fields = {one.name: one for group in groups for one in dataclasses.fields(group)}
    for name, shown in said.items():
        default = fields[name].default
        same = float(shown) == default if isinstance(default, float) else shown == str(default).replace("None", "none")
        assert same, f"--{name} {default}"


def test_flags_have_one_table() -> None:
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        rows = re.findall(r"^\| `--\w+` \|", document.read_text(encoding="utf-8"), re.MULTILINE)
        assert document.name == "flags.md" or len(rows) < 5, f"{document.name}: link to flags.md instead"


def test_the_changelog_begins_with_this_version() -> None:
    versions = re.findall(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert versions[0] == llava.__version__


def test_tests_that_promises_name_exist() -> None:
    """docs/numerics.md names a test for each promise: a file, or a name in the file before."""
    file, missing = ROOT, []
    for word in re.findall(r"`([\w./]*(?:test_\w+\.py|::)[\w:*]*)`", (ROOT / "docs" / "numerics.md").read_text()):
        path, *names = word.split("::")
        file = (ROOT / "tests" / "mezo" / path).resolve() if path else file
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        known = [re.search(rf"(?:def|class) {name.rstrip('*')}", text) for name in names]
        missing += [word] if not text or None in known else []
    assert not missing


class TestPicture:
    """docs/demo.png, and the script that draws it."""

    def size(self, picture: Path) -> tuple[int, int]:
        data = picture.read_bytes()
        assert data.startswith(b"\x89PNG")
        assert len(data) < MOST_BYTES
        width, height = struct.unpack(">II", data[16:24])
        return width, height

    def test_it_is_small_and_in_the_readme(self) -> None:
        assert self.size(ROOT / "docs" / "demo.png") == (1000, 320)
        assert "](docs/demo.png)" in (ROOT / "README.md").read_text(encoding="utf-8")

    def test_it_is_drawn_from_a_run(self, tmp_path: Path) -> None:
        entries = [{"step": step, "loss": 1 / step} for step in range(1, 40)]
        files = {
            "report": {"trainer_mode": "zo", "steps": 39},
            "trainer_state": {"log_history": [*entries, {"step": 39, "train_loss": 0.1}]},
            "training_args": {"data_path": "train.json", "per_device_train_batch_size": 4},
            "eval_before": {"accuracy": 0.5, "total": 8},
            "eval_after": {"accuracy": 0.75, "total": 8},
        }
        for name, values in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(values))
        pictures = [tmp_path / "one.png", tmp_path / "two.png"]
        for picture in pictures:
            done = script("demo_picture.py", str(tmp_path), "--output", str(picture))
            assert done.returncode == 0, done.stderr
        assert self.size(pictures[0]) == (1000, 320)
        assert pictures[0].read_bytes() == pictures[1].read_bytes()

    def test_a_folder_without_a_run_is_named(self, tmp_path: Path) -> None:
        done = script("demo_picture.py", str(tmp_path))
        assert done.returncode == 1
        assert done.stderr.startswith(f"{tmp_path / 'report.json'} is not there")

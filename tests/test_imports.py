"""Imports go one way, nothing heavy happens on import, and nothing is printed from the library."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "llava").rglob("*.py"))

# A module may import from its own layer and from those before it; the longest name that fits counts.
LAYERS = (
    {"llava.errors"},
    {"llava.constants", "llava.mezo"},
    {"llava.utils", "llava.prompt_styles", "llava.conversation", "llava.video", "llava.data"},
    {"llava.mm_utils"},
    {"llava.model"},
    {"llava.eval"},
    {"llava.train"},
    {"llava.data.check"},  # a command that gives training's verdict about data; nothing imports it
)
MAY_IMPORT_MEZO = {
    f"llava/train/{name}.py"
    for name in (
        "mezo_trainer",
        "zo_journal",
        "resume_points",
        "run_folder",
        "sparse_loss",
        "step_inputs",
        "unsaved",
        "arguments",
        "zo_arguments",
    )
}
OPTIONAL = {"av", "decord", "deepspeed", "peft", "bitsandbytes", "wandb", "flash_attn", "triton", "numba", "datasets"}


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def layer(module: str) -> int:
    fitting = {
        name: number
        for number, names in enumerate(LAYERS)
        for name in names
        if module == name or module.startswith(name + ".")
    }
    return fitting[max(fitting, key=len)] if fitting else -1  # llava itself


def imported(file: Path, top_level_only: bool = False) -> Iterator[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: relative import"
            assert all(alias.name != "*" for alias in node.names), f"{file}: star import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_one_way(file: Path) -> None:
    own = module_name(file)
    for name in imported(file):
        if not name.startswith("llava") or own == "llava":
            continue
        if name.startswith("llava.mezo") and not own.startswith("llava.mezo"):
            assert str(file.relative_to(ROOT)) in MAY_IMPORT_MEZO or own.startswith("llava.eval")
        if own.startswith("llava.mezo"):
            assert name.startswith("llava.mezo"), f"{own} imports {name}"
        assert layer(name) <= layer(own), f"{own} imports {name}"


def test_layers_are_chosen_by_the_longest_name() -> None:
    assert layer("llava.data.check") == len(LAYERS) - 1
    assert layer("llava.data.check_text") == layer("llava.data.loading") == layer("llava.utils")
    assert layer("llava") == -1


def test_the_command_that_checks_data_is_imported_by_nobody() -> None:
    assert not [file for file in FILES if "llava.data.check" in imported(file)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_optional_packages_are_imported_where_they_are_used(file: Path) -> None:
    kernel = file.parent.name == "kernels"  # imported only once its package is known to be there
    top = {name.split(".")[0] for name in imported(file, top_level_only=True)}
    assert kernel or not top & OPTIONAL


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_print(file: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    assert not [call.lineno for call in calls if getattr(call.func, "id", "") == "print"]


def test_engine_needs_torch_and_the_standard_library_alone() -> None:
    allowed = set(sys.stdlib_module_names) | {
        "torch",
        "numpy",
        "numba",
        "triton",
        "greenlet",
        "safetensors",
        "huggingface_hub",
        "llava",
    }
    for file in (ROOT / "llava" / "mezo").rglob("*.py"):
        assert {name.split(".")[0] for name in imported(file)} <= allowed, file


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, llava, llava.constants; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"

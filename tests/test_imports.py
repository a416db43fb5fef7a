"""Imports go one way, nothing heavy happens on import, and nothing is printed from the library."""

from __future__ import annotations

import ast
import graphlib
import importlib.util
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "llava").rglob("*.py"))
SCRIPTS = [file for file in sorted((ROOT / "scripts").rglob("*.py")) if "upstream" not in file.parts]

# A module may import from its own layer and from those before it; the longest name that fits counts.
LAYERS = (
    {"llava.mezo"},
    {"llava.errors", "llava.constants", "llava.compatibility"},
    {"llava.utils", "llava.chat_formats", "llava.prompt_styles", "llava.conversation"},
    {"llava.mm_utils"},
    {"llava.model"},
    {"llava.samples"},
    {"llava.data", "llava.runs"},
    {"llava.eval", "llava.toy"},
    {"llava.train"},
    {"llava.ask", "llava.check", "llava.data.check", "llava.serve"},  # commands; nothing below imports them
)
MAY_IMPORT_MEZO = (
    "llava.eval",
    "llava.model.chunked_loss",
    "llava.runs",
    "llava.samples.answers",
    "llava.train.zo",
    "llava.train.flags.algorithm_flags",
    "llava.train.flags.arguments",
    "llava.train.footprint",
    "llava.train.found_rate",
    "llava.train.going_on",
    "llava.train.train",
    "llava.train.advise",
    "llava.train.surroundings",
    "llava.train.sweep",
)
# Below everything, and with the engine since they travel with it.
FOR_ALL = (
    *("llava.mezo.errors", "llava.mezo.durable", "llava.mezo.new_folder"),
    *("llava.mezo.inference", "llava.mezo.reuse", "llava.mezo.command_line"),
)
# What may be imported inside a function, of this package: whatever not everybody who imports the file needs.
CHOSEN_LATER = {
    "llava.mezo.kernels.choice": {"llava.mezo.kernels"},
    "llava.train.train": {"llava.train.zo.extended_trainer"},
    "llava.train.zo.offloading": {"llava.train.footprint", "llava.train.methods"},  # not in other trees
    "llava.model.builder": {"llava.model.tuners"},
    "llava.train.parts.adapters": {"llava.model.tuners"},
}
OPTIONAL = {
    "gradio",
    "av",
    "decord",
    "deepspeed",
    "peft",
    "bitsandbytes",
    "wandb",
    "flash_attn",
    "triton",
    "numba",
    "datasets",
    "galore_torch",
    "lomo_optim",
    "optuna",
}


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
        if name.startswith("llava.mezo") and not own.startswith("llava.mezo") and not name.startswith(FOR_ALL):
            assert name == "llava.mezo" or own.startswith(MAY_IMPORT_MEZO)
        if own.startswith("llava.mezo"):
            assert name.startswith("llava.mezo"), f"{own} imports {name}"
        assert layer(name) <= layer(own), f"{own} imports {name}"


def test_no_two_files_import_each_other() -> None:
    modules = {module_name(file): file for file in FILES}
    needs = {own: {n for n in imported(file) if n in modules} - {own} for own, file in modules.items()}
    packages = {own for own, file in modules.items() if file.name == "__init__.py"}
    for own, names in needs.items():
        # a package stands for its own names; where a module of it is asked for, that is what is needed
        names -= {p for p in packages & names if any(name.startswith(f"{p}.") for name in names)}
        if own == "llava.mezo":
            names.clear()  # they are looked up when they are asked for
    graphlib.TopologicalSorter(needs).prepare()  # a CycleError names the files


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_what_a_file_needs_stands_at_its_top(file: Path) -> None:
    own = module_name(file)
    tree = ast.parse(file.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inside = {n.module or "" for f in functions for n in ast.walk(f) if isinstance(n, ast.ImportFrom)}
    wrong = {m for m in inside if m.startswith("llava") and not m.startswith(tuple(CHOSEN_LATER.get(own, {"-"})))}
    assert not wrong


def test_layers_are_chosen_by_the_longest_name() -> None:
    assert layer("llava.data.check") == layer("llava.check.command") == len(LAYERS) - 1
    assert layer("llava.data.items") == layer("llava.data.checks") < layer("llava.train.flags.parsing")
    assert layer("llava") == -1


def test_the_command_that_checks_data_is_imported_by_nobody() -> None:
    assert [file.name for file in FILES if "llava.check.command" in imported(file)] == ["check.py"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_optional_packages_are_imported_where_they_are_used(file: Path) -> None:
    kernel = file.parent.name in ("kernels", "tuners")  # imported only once their package is known to be there
    top = {name.split(".")[0] for name in imported(file, top_level_only=True)}
    assert kernel or not top & OPTIONAL


COMMANDS = [module_name(file) for file in FILES if 'if __name__ == "__main__":' in file.read_text(encoding="utf-8")]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("module", COMMANDS)
def test_commands_start(module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module(module, run_name="__main__")
    assert stop.value.code in (0, None) and "usage:" in capsys.readouterr().out


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


ENGINE = {"llava.mezo.kernels", "llava.mezo.perturb", "llava.mezo.optimizer", "llava.mezo.trained"}
# In an order in which each may need more than those before it.
IMPORTED = ("llava.mezo.journal.records", "llava.mezo.journal.__main__", "llava.train.train", "llava.train.zo.trainer")


@pytest.fixture(scope="module")
def imported_with() -> dict[str, set[str]]:
    """All modules that one fresh Python has after importing these, one after the other."""
    code = f"import importlib, sys\nfor name in {IMPORTED}:\n    importlib.import_module(name); print(*sys.modules)"
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    return {name: set(line.split()) for name, line in zip(IMPORTED, lines, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("module", ["llava.train.train", "llava.mezo.journal.records", "llava.mezo.journal.__main__"])
def test_who_needs_no_engine_imports_none(module: str, imported_with: dict[str, set[str]]) -> None:
    assert module in imported_with[module]
    assert not imported_with[module] & ENGINE


@pytest.mark.slow
def test_the_trainer_imports_the_engine(imported_with: dict[str, set[str]]) -> None:
    assert imported_with["llava.train.zo.trainer"] > ENGINE


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_what_scripts_import_from_here_is_there(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("llava"):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                assert hasattr(module, alias.name) or importlib.util.find_spec(inside) is not None


def test_importing_the_package_is_light() -> None:
    code = "import sys, llava.constants; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "llava.constants" in modules and not set(modules) & {"torch", "transformers", "numpy"}

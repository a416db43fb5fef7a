"""What all tests share: no network, the folder of conformance data, one torch thread per process."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, here and in the processes of tests

import pytest

from llava.runs.style import empty_figure

GOLDEN_ROOT = Path(__file__).parent / "assets" / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of conformance data; its README.md says how to read the files and with which tolerances."""
    return GOLDEN_ROOT


@contextmanager
def _package_log_as_before() -> Iterator[None]:
    package = logging.getLogger("llava")
    before = package.level, list(package.handlers), package.propagate
    yield
    package.setLevel(before[0])
    package.handlers[:] = before[1]
    package.propagate = before[2]


@pytest.fixture(scope="module", autouse=True)
def _log_of_a_module() -> Iterator[None]:
    """As below, of what fixtures of a module train."""
    with _package_log_as_before():
        yield


@pytest.fixture(autouse=True)
def _log_of_a_test() -> Iterator[None]:
    """Commands set logging up for their process; tests share one, and each has a stderr of its own."""
    with _package_log_as_before():
        yield


@pytest.fixture(scope="module", autouse=True)
def _default_template_as_before_the_module() -> Iterator[None]:
    """As below, of what fixtures of a module train."""
    from llava import conversation

    before = conversation.default_conversation
    yield
    conversation.default_conversation = before


@pytest.fixture(autouse=True)
def _default_template_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training sets the template of its process; tests share one."""
    from llava import conversation

    monkeypatch.setattr(conversation, "default_conversation", conversation.default_conversation)


@pytest.fixture(scope="module", autouse=True)
def _collect_new_objects_only() -> None:
    """Each run ends with a garbage collection, and going through all of torch and transformers takes half a second."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # else nanobind reports all that is left when Python ends


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Called with a function and what it is called with: the error that it ends the process with, exit code 2."""

    def error_of(function: Callable[..., Any], *given: Any, **more: Any) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            function(*given, **more)
        assert stop.value.code == 2
        return capsys.readouterr().err

    return error_of


@pytest.fixture
def figures_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[Any]]:
    """Called with a module, a list that gets the figure and axes of each `empty_figure` that it makes from then on."""

    def watch(module: Any) -> list[Any]:
        made: list[Any] = []

        def figure(*given: Any, **more: Any) -> Any:
            made.append(empty_figure(*given, **more))
            return made[-1]

        monkeypatch.setattr(module, "empty_figure", figure)
        return made

    return watch

"""One torch thread for these tests: the models are tiny, and waiting for a second thread costs more than it saves.

The folder also goes into other trees, with older torch and without this one's pyproject.toml.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: more than two seconds")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out models in float16 where torch multiplies such matrices on GPUs alone, as it did up to 2.1."""
    if _multiplies_float16():
        return
    for item in items:
        if torch.float16 in getattr(item, "callspec", _NoParameters).params.values():
            item.add_marker(pytest.mark.skip("this torch has no float16 matrix product on CPUs"))


class _NoParameters:
    params: ClassVar[dict[str, object]] = {}


def _multiplies_float16() -> bool:
    matrix = torch.ones(1, 1, dtype=torch.float16)
    try:
        torch.nn.functional.linear(matrix, matrix)
    except RuntimeError:
        return False
    return True

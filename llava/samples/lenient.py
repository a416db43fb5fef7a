"""The one place of samples that is lenient about other people's objects: what they lack has its default."""

from __future__ import annotations

from dataclasses import fields
from typing import Any


def attributes_of(kind: type, source: Any) -> dict[str, Any]:
    """Those fields of the dataclass `kind` that `source` has as attributes."""
    return {one.name: getattr(source, one.name) for one in fields(kind) if hasattr(source, one.name)}

"""Keys of config.json in the spelling of transformers 4, which version 5 reads as well."""

from __future__ import annotations

from typing import Any


def as_version_4(values: dict[str, Any]) -> dict[str, Any]:
    """A config's contents with `rope_theta`, `rope_scaling` and `torch_dtype`; `values` itself is changed."""
    rope = values.pop("rope_parameters", None)
    if isinstance(rope, dict):
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        plain = scaling.get("rope_type", "default") == "default"
        values["rope_theta"] = rope.get("rope_theta")
        values["rope_scaling"] = None if plain else {"type": scaling.get("rope_type"), **scaling}
    if "dtype" in values:
        values["torch_dtype"] = values.pop("dtype")
    return values

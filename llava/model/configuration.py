"""What LLaVA configs add to a language model's: reading plain ones, and writing files that older readers understand.

Transformers 5 spells some keys of config.json in new ways. Files are written with the spelling of version 4
(`rope_theta`, `rope_scaling`, `torch_dtype`), which both read, so that checkpoints can go back and forth.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from transformers import PretrainedConfig as _Base
else:
    _Base = object  # a language model's config class comes behind the mixin

# Found again from the tower's name; written only where that would not work (see TowerSpec.remember).
TOWER_KEYS = ("mm_vision_tower_config", "mm_image_processor_config")


class LlavaConfigMixin(_Base):
    """Goes in front of a language model's config class; subclasses set `model_type` and `base_model_type`."""

    base_model_type: ClassVar[str]

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read config.json; one of the plain language model counts as ours."""
        values, rest = super().get_config_dict(*args, **kwargs)
        if values.get("model_type") == cls.base_model_type:
            values = {**values, "model_type": cls.model_type}
        return values, rest

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        values = dict(config_dict)
        if "torch_dtype" in values:
            values["dtype"] = values.pop("torch_dtype")
        result = super().from_dict(values, **kwargs)
        config = result[0] if isinstance(result, tuple) else result
        config._keys_read = sorted(key for key in config_dict if not key.startswith("_"))
        # What the library empties on reading, as it does with `sliding_window` when `use_sliding_window` is false.
        config._emptied = {
            key: value for key, value in values.items() if value is not None and getattr(config, key, key) is None
        }
        return result

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        values.pop("_keys_read", None)
        values |= {key: value for key, value in values.pop("_emptied", {}).items() if values.get(key) is None}
        if values.pop("_tower_found_elsewhere", False):
            for key in TOWER_KEYS:
                values.pop(key, None)
        return values

    def to_diff_dict(self) -> dict[str, Any]:
        """What config.json holds: what differs from the defaults, and every key that was read."""
        keys_read = getattr(self, "_keys_read", [])
        everything = _as_version_4(self.to_dict())
        values = _as_version_4(super().to_diff_dict())
        values |= {key: everything[key] for key in keys_read if key in everything}
        if keys_read:
            values = {key: value for key, value in values.items() if value is not None or key in keys_read}
        if "layer_types" not in keys_read:
            # Derived from use_sliding_window and max_window_layers; version 4.40 knows only these.
            values.pop("layer_types", None)
        return values


def _as_version_4(values: dict[str, Any]) -> dict[str, Any]:
    rope = values.pop("rope_parameters", None)
    if isinstance(rope, dict):
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        plain = scaling.get("rope_type", "default") == "default"
        values["rope_theta"] = rope.get("rope_theta")
        values["rope_scaling"] = None if plain else {"type": scaling.get("rope_type"), **scaling}
    if "dtype" in values:
        values["torch_dtype"] = values.pop("dtype")
    return values

"""What LLaVA configs add to a language model's: reading plain ones, and writing files that older readers understand.

Transformers 5 spells some keys of config.json in new ways. Files are written with the spelling of version 4
(`rope_theta`, `rope_scaling`, `torch_dtype`), which both read, so that checkpoints can go back and forth.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from llava.model.config_spelling import as_version_4
from llava.model.hf.from_hf import check_readable, is_theirs, our_config, processor_settings

if TYPE_CHECKING:
    from transformers import PretrainedConfig as _Base
else:
    _Base = object  # a language model's config class comes behind the mixin

HUB_ARGUMENTS = ("cache_dir", "revision", "token", "local_files_only")
"""Arguments of `from_pretrained` that say how the hub is reached."""

# Found again from the tower's name; written only where that would not work (see TowerSpec.remember).
TOWER_KEYS = ("mm_vision_tower_config", "mm_image_processor_config")


class LlavaConfigMixin(_Base):
    """Goes in front of a language model's config class; subclasses set `model_type` and `base_model_type`."""

    base_model_type: ClassVar[str]

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read config.json; one of the plain language model, or in Hugging Face's format, counts as ours."""
        name = pretrained_model_name_or_path
        hub = {key: kwargs[key] for key in HUB_ARGUMENTS if kwargs.get(key) is not None}
        values, rest = super().get_config_dict(name, **kwargs)
        if is_theirs(values, str(name)):
            check_readable(values, str(name))
            values = our_config(values, processor_settings(str(name), **hub), str(name))
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
        everything = as_version_4(self.to_dict())
        values = as_version_4(super().to_diff_dict())
        values |= {key: everything[key] for key in keys_read if key in everything}
        if keys_read:
            values = {key: value for key, value in values.items() if value is not None or key in keys_read}
        if "layer_types" not in keys_read:
            # Derived from use_sliding_window and max_window_layers; version 4.40 knows only these.
            values.pop("layer_types", None)
        return values

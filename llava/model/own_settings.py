"""What a checkpoint says of its own use: the template of its prompts."""

from __future__ import annotations

from typing import Any

from llava.model.checkpoint_files import read_config

TEMPLATE = "conversation_template"
"""Entry of config.json with the template that a checkpoint was trained with."""
_LLAMA_3_WORDS = 128_000
"""No smaller vocabulary is Llama 3's."""


def own_template(config: Any) -> str:
    """Name of the template that a checkpoint was trained with or, where it does not say, of its family's.

    Args:
        config: a config object, or the contents of a config.json.
    """
    values = config if isinstance(config, dict) else config.to_dict()
    if isinstance(values.get(TEMPLATE), str):
        return values[TEMPLATE]
    kind = str(values.get("model_type")).removeprefix("llava_")
    if kind.startswith("qwen"):
        return "qwen_1_5"
    if kind == "llama":
        return "llava_llama_3" if values.get("vocab_size", 0) >= _LLAMA_3_WORDS else "v1"
    return "v0"


def template_of(path: str, base: str | None = None) -> str:
    """`own_template` of the checkpoint at `path`; where that holds no config, of its base."""
    config = read_config(path)
    return own_template(read_config(base) if base is not None and not config else config)

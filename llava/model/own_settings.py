"""What a checkpoint says of itself in config.json: its settings, and the template of its prompts."""

from __future__ import annotations

from typing import Any

from llava.model.checkpoint_files import find_file, read_json
from llava.model.hf.from_hf import is_theirs, our_config, processor_settings
from llava.model.load_settings import DTYPES

TEMPLATE = "conversation_template"
"""Entry of config.json with the template that a checkpoint was trained with."""
_LLAMA_3_WORDS = 128_000
"""No smaller vocabulary is Llama 3's."""


def read_config(name_or_path: Any, **hub: Any) -> dict[str, Any]:
    """The contents of a checkpoint's config.json, in Hugging Face's format or ours, as ours; empty if it has none.

    Args:
        hub: as for `find_file`.
    """
    name = str(name_or_path)
    file = find_file(name, "config.json", **hub)
    values = {} if file is None else read_json(file)
    return our_config(values, processor_settings(name, **hub), name) if is_theirs(values, name) else values


def own_template(config: Any) -> str:
    """Name of the template that a checkpoint was trained with or, where it does not say, of its family's.

    Args:
        config: a config object, or the contents of a config.json.
    """
    names = (TEMPLATE, "model_type", "vocab_size")
    own, kind, words = (config.get(n) if isinstance(config, dict) else getattr(config, n, None) for n in names)
    if isinstance(own, str):
        return own
    kind = str(kind).removeprefix("llava_")
    if kind.startswith("qwen"):
        return "qwen_1_5"
    if kind == "llama":
        return "llava_llama_3" if (words or 0) >= _LLAMA_3_WORDS else "v1"
    return "v0"


def template_of(path: str, base: str | None = None) -> str:
    """`own_template` of the checkpoint at `path`; where that holds no config, of its base."""
    config = read_config(path)
    return own_template(read_config(base) if base is not None and not config else config)


def dtype_of(path: str, base: str | None = None) -> str:
    """The dtype that the checkpoint at `path` names or, where it names none, its base; else float16."""
    for config in map(read_config, filter(None, (path, base))):
        for entry in ("dtype", "torch_dtype"):  # by the age of transformers
            if config.get(entry) in DTYPES:
                return str(config[entry])
    return "float16"

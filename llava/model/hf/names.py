"""Names of weights in the two formats.

Files of Hugging Face's format spell names in two ways: as its models of transformers 4 had them, which is how they are
published and what is written here, and as those of transformers 5 have them in memory.
"""

from __future__ import annotations

import re

TOWER = "model.vision_tower.vision_tower.vision_model."
"""What names of the tower's weights begin with in our format."""

READ_AS = {
    r"^(?:model\.)?vision_tower\.(?!vision_tower\.)(?:vision_model\.)?": TOWER,
    r"^(?:model\.)?multi_modal_projector\.linear_1\.": "model.mm_projector.0.",
    r"^(?:model\.)?multi_modal_projector\.linear_2\.": "model.mm_projector.2.",
    r"^image_newline$": "model.image_newline",
    r"^language_model\.lm_head\.": "lm_head.",
    r"^language_model\.model\.": "model.",
    r"^model\.language_model\.": "model.",
}
"""Pattern of a name in Hugging Face's format -> what stands there in ours; our own names match none."""

_WRITTEN_AS = (
    (TOWER, "vision_tower.vision_model."),
    ("model.mm_projector.0.", "multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "multi_modal_projector.linear_2."),
    ("model.image_newline", "image_newline"),
    ("lm_head.", "language_model.lm_head."),
    ("model.", "language_model.model."),
)

EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")
"""Weights with a row for each token."""


def our_name(name: str) -> str:
    """What a weight of Hugging Face's format is called in ours; a name of ours stays."""
    for pattern, replacement in READ_AS.items():
        renamed = re.sub(pattern, replacement, name)
        if renamed != name:
            return renamed
    return name


def their_name(name: str) -> str:
    """What a weight of ours is called in Hugging Face's format.

    Raises:
        KeyError: for a name that has no place there.
    """
    for start, replacement in _WRITTEN_AS:
        if name.startswith(start):
            return replacement + name.removeprefix(start)
    raise KeyError(name)

"""A tokenizer for when there is none: it shows whether turns fit a template, but its lengths mean nothing."""

from __future__ import annotations

import re
import sys
from typing import Any

# Any marker of a chat template (`<|im_start|>`), else a single character.
_PIECE = re.compile(r"<\|\w+\|>|.", re.DOTALL)
_FIRST_MARKER = sys.maxunicode + 1


class StandInTokenizer:
    """One token for each character and for each marker; as much of a fast tokenizer as choosing labels needs."""

    model_max_length = sys.maxsize
    bos_token_id = None
    unk_token_id = None
    name_or_path = "stand-in"
    padding_side = "right"

    def __init__(self) -> None:
        self._markers: dict[str, int] = {}

    def __call__(self, text: str, **how: Any) -> dict[str, list[Any]]:
        """`input_ids` and `offset_mapping` of a text; all options of tokenizers are accepted and none matters."""
        pieces = list(_PIECE.finditer(text))
        return {
            "input_ids": [self._id(piece.group()) for piece in pieces],
            "offset_mapping": [piece.span() for piece in pieces],
        }

    def __len__(self) -> int:
        return _FIRST_MARKER + len(self._markers)

    def get_added_vocab(self) -> dict[str, int]:
        return {}

    def _id(self, piece: str) -> int:
        return ord(piece) if len(piece) == 1 else self._markers.setdefault(piece, len(self))

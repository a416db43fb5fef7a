"""A parser for the commands beside train.py, which takes a flag in either spelling, as that of train.py does."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any


class Parser(argparse.ArgumentParser):
    """argparse's, for which --model_path is --model-path, and --lora-r is --lora_r; help and errors have its own names.

    What stands behind a lone `--` stays as it is. What `python -m` started is called so, not by its file's name.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        if spec is not None and spec.name.startswith("llava."):
            kwargs.setdefault("prog", f"python -m {spec.name.removesuffix('.__main__')}")
        super().__init__(*args, **kwargs)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """See `argparse.ArgumentParser.parse_known_args`."""
        words = list(sys.argv[1:] if args is None else args)
        end = words.index("--") if "--" in words else len(words)
        words[:end] = map(self._own_spelling, words[:end])
        return super().parse_known_args(words, namespace)

    def _own_spelling(self, word: str) -> str:
        name, equals, value = word.partition("=")
        if not name.startswith("--") or name in self._option_string_actions:
            return word
        plain = name[2:].replace("_", "-")
        known = (flag for flag in self._option_string_actions if flag[2:].replace("_", "-") == plain)
        return next(known, name) + equals + value

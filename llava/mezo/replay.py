"""`python -m llava.mezo.replay`: the command of `llava.mezo.journal.replay`."""

from __future__ import annotations

import sys

from llava.mezo.journal.replay import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())

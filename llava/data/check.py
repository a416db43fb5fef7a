"""`python -m llava.data.check`: the command of `llava.check`."""

from __future__ import annotations

from llava.check.command import main

__all__ = ["main"]

if __name__ == "__main__":
    main()

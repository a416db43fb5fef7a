"""`python -m llava.eval.report`: the command of `llava.runs.report`."""

from __future__ import annotations

from llava.runs.report import main

__all__ = ["main"]

if __name__ == "__main__":
    main()

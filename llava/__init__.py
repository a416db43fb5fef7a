"""LLaVA-OneVision training tree with zeroth-order (MeZO) fine-tuning.

Importing the package opens no file, no socket and no heavy module.
"""

from __future__ import annotations

from llava.compatibility import names_of

__version__ = "0.2.0"

__getattr__ = names_of(__name__)

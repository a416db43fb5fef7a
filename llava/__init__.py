"""LLaVA-OneVision training tree with zeroth-order (MeZO) fine-tuning.

Importing the package opens no file, no socket and no heavy module.
"""

from __future__ import annotations

import logging

from llava.compatibility import names_of

__version__ = "0.2.0"

__getattr__ = names_of(__name__)

# PEFT imports bitsandbytes in every command, which complains there of a kernel of 4 bits for CPUs with AVX512-BF16.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda record: "gemm_4bit_forward" not in str(record.msg))

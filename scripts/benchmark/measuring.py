"""Peak memory of some work, on a CPU or on CUDA; and a script started again in a process of its own."""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def peak_over_loaded(device: torch.device, make: Callable[[], Callable[[], Any]], times: int = 3) -> int:
    """Bytes in use at the peak of `times` calls of what `make` makes, beyond those in use now.

    On CUDA `max_memory_allocated`, on a CPU the process's resident size.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        loaded = torch.cuda.memory_allocated()
    else:
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
        loaded = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    run = make()
    for _ in range(times):
        run()
    return (torch.cuda.max_memory_allocated() if device.type == "cuda" else _status("VmHWM")) - loaded


def _status(name: str) -> int:
    """An entry of this process's status, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def in_own_process(script: str, *argv: str) -> Any:
    """What `script` prints as JSON in its last line when it is started with these arguments.

    Raises:
        subprocess.CalledProcessError: it failed; why is on stderr.
    """
    words = [sys.executable, script, *argv]
    return json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])

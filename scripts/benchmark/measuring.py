"""Peak memory of some work, on a CPU or on CUDA; live storages counted; methods timed; a script in its own process."""

from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import json
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

Times = dict[str, list[float]]


def add_json(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """The flag `--json`, whose folder is made, or found wrong, before anything is measured."""
    parser.add_argument("--json", type=_json_file, default=default, help=f"the figures; default: {default or 'none'}")


def _json_file(text: str) -> Path:
    try:
        Path(text).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text}: its folder cannot be made ({error})") from error
    if Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder")
    return Path(text)


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


class LiveStorages(TorchDispatchMode):
    """Counts the bytes of storages that it is told of, each once, until nobody has them any more.

    Attributes:
        now: bytes alive.
        peak: most of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, int] = {}

    def count(self, tensor: torch.Tensor) -> None:
        """From now on the tensor's storage counts."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive or size == 0:
            return
        self._alive[key] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._dies, key)

    def _dies(self, key: int) -> None:
        self.now -= self._alive.pop(key)


def time_calls(times: Times, owner: type, method: str, name: str) -> None:
    """From now on each call of the method adds its seconds to the last ones of that name."""
    function = getattr(owner, method)

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            times[name][-1] += time.perf_counter() - begin

    setattr(owner, method, wrapper)

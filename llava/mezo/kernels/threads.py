"""A loop shared by torch's own threads.

Between two of its operations torch's OpenMP threads wait by spinning, for some milliseconds. Other threads would have
to share the cores with them: on two cores a kernel run by a pool of its own takes twice as long after a matrix product
as it takes alone. So the loop is handed to the same threads, through the entry point that compilers call. Where that
is not to be found (macOS, Windows, a forked process, whose OpenMP threads are gone) a pool of Python threads runs it.
"""

from __future__ import annotations

import ctypes
import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

Part = Callable[[int, int], object]
_BODY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_MAPS = Path("/proc/self/maps")
_IMPORTED_IN = os.getpid()
"""A process that was forked later has none of these threads, and OpenMP would wait for them."""


def share(function: Part, first: int, last: int) -> None:
    """Run function(a, b) over consecutive parts a ... b of first ... last, one on each of torch's threads.

    `function` should spend its time without the interpreter's lock. An exception in any part is raised here.
    """
    threads = torch.get_num_threads()
    edges = [first + (last - first) * part // threads for part in range(threads + 1)]
    runs = [partial(function, *part) for part in itertools.pairwise(edges)]
    if threads == 1:
        runs[0]()
        return
    openmp = _openmp() if os.getpid() == _IMPORTED_IN else None
    if openmp is None:
        own, *rest = runs
        others = [_workers(os.getpid()).submit(run) for run in rest]
        own()
        for other in others:
            other.result()
    else:
        openmp.run(runs)


class _OpenMP:
    """libgomp's interface to compiled code, which LLVM's and Intel's libraries offer as well."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._parallel = library.GOMP_parallel
        self._parallel.argtypes = [_BODY, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        self._parallel.restype = None
        self._thread_number = library.omp_get_thread_num
        self._team_size = library.omp_get_num_threads

    def run(self, runs: Sequence[Callable[[], object]]) -> None:
        """All of `runs`, in a team of as many threads as torch asks for: another size would rebuild its team."""
        errors: list[BaseException] = []

        def own_share(_: Any) -> None:
            try:
                for run in runs[self._thread_number() :: self._team_size()]:
                    run()
            except BaseException as error:  # would be printed and lost: no Python code called this
                errors.append(error)

        self._parallel(_BODY(own_share), None, len(runs), 0)
        if errors:
            raise errors[0]


@lru_cache(maxsize=1)
def _openmp() -> _OpenMP | None:
    """The OpenMP library that torch has loaded; None where there is none or it cannot be told."""
    if "ATen parallel backend: OpenMP" not in torch.__config__.parallel_info() or not _MAPS.exists():
        return None
    files = {Path(line.split(maxsplit=5)[-1]) for line in _MAPS.read_text().splitlines() if "omp" in line}
    found = [file for file in files if file.name.startswith(("libgomp", "libomp", "libiomp"))]
    # other packages bring their own; torch's wheels keep it in torch/lib, and elsewhere there is but one
    own = [file for file in found if file.parent.parent == Path(torch.__file__).parent] or found
    if len(own) != 1:
        return None
    try:
        return _OpenMP(ctypes.CDLL(str(own[0])))
    except (OSError, AttributeError):
        return None


@lru_cache(maxsize=1)
def _workers(process: int) -> ThreadPoolExecutor:
    """A pool of this process."""
    return ThreadPoolExecutor(max_workers=max(1, torch.get_num_threads() - 1), thread_name_prefix="mezo")

"""Which kernel computes: the one place where that is decided. All give the same bits, so "auto" takes the fastest."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from llava.mezo.config import KERNEL_DEVICES
from llava.mezo.kernels.interface import Kernel
from llava.mezo.noise import rank_of

logger = logging.getLogger(__name__)


def _load_reference() -> Kernel:
    from llava.mezo.kernels.numpy_reference import NumpyTable

    return Kernel("reference", NumpyTable)


def _load_torch() -> Kernel:
    from llava.mezo.kernels.torch_any import TorchTable

    return Kernel("torch", TorchTable)


def _load_numba() -> Kernel:
    try:
        importlib.import_module("numba")
    except Exception as error:  # one that does not fit the installed NumPy fails with whatever it stumbles over
        raise ImportError(f"numba cannot be imported: {error}") from error
    from llava.mezo.kernels.numba_cpu import NumbaTable

    return Kernel("numba", NumbaTable)


def _load_triton() -> Kernel:
    from llava.mezo.kernels.triton_cuda import TritonTable

    return Kernel("triton", TritonTable)


@dataclass(frozen=True)
class _Entry:
    load: Callable[[], Kernel]
    low_rank: bool
    """Whether it has directions of low rank."""


_TABLE = {
    "reference": _Entry(_load_reference, True),
    "torch": _Entry(_load_torch, True),
    "numba": _Entry(_load_numba, False),
    "triton": _Entry(_load_triton, False),
}


@cache
def kernel_for(name: str, device_type: str, noise: str = "gaussian") -> Kernel:
    """The kernel called `name` ("auto" included) for tensors on a device of this type ("cpu", "cuda", ...).

    Raises:
        ValueError: it is unknown, does not run on this type of device, lacks the noise, or is not installed.
    """
    if name == "auto":
        name = "torch" if rank_of(noise) else fastest(device_type)
        logger.info("mezo: %s kernel for tensors on %s", name, device_type)
    kernel = load(name, device_type)
    if rank_of(noise) and not _TABLE[name].low_rank:
        raise ValueError(f"kernel {name!r} has no directions of low rank; choose kernel 'auto' or 'torch'")
    return kernel


def load(name: str, device_type: str) -> Kernel:
    """The kernel of this name. ValueError as in `kernel_for`."""
    if name not in _TABLE:
        raise ValueError(f"kernel is {name!r}; it must be one of auto, {', '.join(_TABLE)}")
    devices = KERNEL_DEVICES[name]
    if devices is not None and device_type not in devices:
        raise ValueError(
            f"kernel {name!r} runs on {', '.join(devices)} alone and a trainable weight is on {device_type!r}; "
            "choose kernel 'auto' or 'torch'"
        )
    try:
        return _TABLE[name].load()
    except ImportError as error:
        raise ValueError(f"kernel {name!r} cannot be loaded ({error}); choose kernel 'auto' or 'torch'") from error


@cache
def available(name: str) -> bool:
    """Whether the kernel's package is here, and fit for it; once it is said why not."""
    try:
        _TABLE[name].load()
    except ImportError as error:
        logger.warning("the kernel %s is not here (%s): slower ones compute the same bits", name, error)
        return False
    return True


def fastest(device_type: str) -> str:
    """Name of the fastest kernel that runs on this type of device."""
    special = {"cpu": "numba", "cuda": "triton"}.get(device_type)
    return special if special is not None and available(special) else "torch"

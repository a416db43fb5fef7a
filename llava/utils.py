"""Logging for runs on one or many processes, and small helpers that users of LLaVA-NeXT import from here."""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llava.compatibility import names_of
from llava.constants import LOGDIR

__getattr__ = names_of(__name__)

LOG_FORMAT = "%(asctime)s | %(levelname)s | %(name)s | %(message)s"

logger = logging.getLogger(__name__)


def process_rank() -> int:
    """Rank of this process among all of the run; 0 when there is only one."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank()
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))


class BesideBars(logging.StreamHandler):
    """Writes each line where no progress bar stands; the bar comes back below it."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line."""
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


def setup_logging() -> None:
    """Send the package's log to stderr, of other ranks than 0 warnings and worse alone. Safe to repeat."""
    package = logging.getLogger("llava")
    package.setLevel(logging.INFO if process_rank() == 0 else logging.WARNING)
    if not any(getattr(handler, "_llava", False) for handler in package.handlers):
        handler = BesideBars()
        handler.setFormatter(logging.Formatter(LOG_FORMAT, datefmt="%H:%M:%S"))
        handler._llava = True  # type: ignore[attr-defined]
        package.addHandler(handler)
    package.propagate = False


def rank0_print(*args: Any) -> None:
    """Log the arguments, separated by spaces, on rank 0 only."""
    if process_rank() == 0:
        logger.info(" ".join(map(str, args)))


def rank_print(*args: Any) -> None:
    """Log the arguments, separated by spaces, with the process's rank in front."""
    logger.info("rank %d: %s", process_rank(), " ".join(map(str, args)))


def build_logger(logger_name: str, logger_filename: str | os.PathLike[str] | None) -> logging.Logger:
    """A logger that writes to stderr and, with a file name, to that file below `LOGDIR`, a new one each day."""
    named = logging.getLogger(logger_name)
    named.setLevel(logging.INFO)
    if not named.handlers:
        handlers: list[logging.Handler] = [logging.StreamHandler()]
        if logger_filename is not None:
            path = Path(LOGDIR) / logger_filename
            path.parent.mkdir(parents=True, exist_ok=True)
            handlers.append(logging.handlers.TimedRotatingFileHandler(path, when="D", utc=True, encoding="utf-8"))
        for handler in handlers:
            handler.setFormatter(logging.Formatter(LOG_FORMAT))
            named.addHandler(handler)
    return named


class StreamToLogger:
    """A writable stream whose lines become log records; a line is logged once it is complete or flushed."""

    def __init__(self, logger: logging.Logger, log_level: int = logging.INFO) -> None:
        self.logger = logger
        self.log_level = log_level
        self._pending = ""

    def write(self, text: str) -> int:
        """Take text; every complete line is logged."""
        *lines, self._pending = (self._pending + text).split("\n")
        for line in lines:
            self._log(line)
        return len(text)

    def flush(self) -> None:
        """Log what has been written since the last line end."""
        self._log(self._pending)
        self._pending = ""

    def isatty(self) -> bool:
        return False

    def _log(self, line: str) -> None:
        if line.strip():
            self.logger.log(self.log_level, line.rstrip())


def disable_torch_init() -> None:
    """Switch off the random initialisation of Linear and LayerNorm, which loading a checkpoint would overwrite."""
    from torch import nn

    for layer in (nn.Linear, nn.LayerNorm):
        layer.reset_parameters = lambda self: None  # type: ignore[method-assign]


def pretty_print_semaphore(semaphore: Any) -> str:
    """`Semaphore(value=..., locked=...)`, or `None` for no semaphore."""
    if semaphore is None:
        return "None"
    return f"Semaphore(value={semaphore._value}, locked={semaphore.locked()})"

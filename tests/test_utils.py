"""Logging by rank and the small helpers."""

from __future__ import annotations

import asyncio
import logging

import pytest
from torch import nn

from llava import utils


@pytest.fixture()
def package_logger():
    logger = logging.getLogger("llava")
    before = logger.level, list(logger.handlers), logger.propagate
    yield logger
    logger.level, logger.handlers, logger.propagate = before
    logger.setLevel(before[0])


@pytest.mark.parametrize(("rank", "level"), [("0", logging.INFO), ("3", logging.WARNING)])
def test_only_rank_0_informs(monkeypatch, package_logger, rank, level):
    monkeypatch.setenv("RANK", rank)
    utils.setup_logging()
    utils.setup_logging()
    assert package_logger.level == level
    assert sum(getattr(handler, "_llava", False) for handler in package_logger.handlers) == 1


def test_printing_by_rank(monkeypatch, caplog):
    monkeypatch.setenv("RANK", "2")
    with caplog.at_level("INFO", logger="llava"):
        utils.rank0_print("hidden")
        utils.rank_print("seen", 4)
        monkeypatch.setenv("RANK", "0")
        utils.rank0_print("shown", 5)
    assert caplog.messages == ["rank 2: seen 4", "shown 5"]


def test_stream_to_logger(caplog):
    stream = utils.StreamToLogger(logging.getLogger("llava.stream"), logging.WARNING)
    with caplog.at_level("WARNING", logger="llava"):
        stream.write("one\ntw")
        stream.write("o\n\nthree")
        assert caplog.messages == ["one", "two"]
        stream.flush()
    assert caplog.messages == ["one", "two", "three"]


def test_build_logger_writes_a_file(monkeypatch, tmp_path):
    monkeypatch.setattr(utils, "LOGDIR", str(tmp_path))
    logger = utils.build_logger("llava.test_build_logger", "sub/run.log")
    logger.info("hello")
    assert utils.build_logger("llava.test_build_logger", "sub/run.log").handlers == logger.handlers
    for handler in logger.handlers:
        handler.flush()
    assert "hello" in (tmp_path / "sub" / "run.log").read_text()


def test_disable_torch_init(monkeypatch):
    for layer in (nn.Linear, nn.LayerNorm):
        monkeypatch.setattr(layer, "reset_parameters", layer.reset_parameters)
    utils.disable_torch_init()
    layer = nn.Linear(2, 2)
    nn.init.constant_(layer.weight, 7.0)
    layer.reset_parameters()
    assert layer.weight.eq(7.0).all()


def test_semaphore_text():
    assert utils.pretty_print_semaphore(None) == "None"
    assert utils.pretty_print_semaphore(asyncio.Semaphore(2)) == "Semaphore(value=2, locked=False)"


def test_the_kernel_that_bitsandbytes_misses_is_not_complained_of(caplog):
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s", "no kernels")
    logger.warning("another thing")
    assert caplog.messages == ["another thing"]

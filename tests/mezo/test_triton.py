"""The CUDA kernel without a GPU: its bits in Triton's interpreter, and what it compiles to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llava.mezo.kernels.addresses import BFLOAT16
from llava.mezo.kernels.choice import available

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(not available("triton"), reason="triton is not installed")


def run(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Processes of their own, since Triton decides on import whether it interprets."""
    words = [sys.executable, str(HERE / script)]
    path = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    variables = {**os.environ, "PYTHONPATH": path, **environment}
    return subprocess.run(words, capture_output=True, text=True, env=variables)


@pytest.mark.slow
def test_it_gives_the_bits_of_the_reference() -> None:
    result = run("interpreted_triton.py", TRITON_INTERPRET="1")
    assert result.returncode == 0, result.stdout + result.stderr
    assert int(result.stdout.split()[0]) >= 10


@pytest.mark.slow
def test_it_compiles_for_gpus_without_fused_multiply_add(tmp_path: Path) -> None:
    result = run("compiled_triton.py", TRITON_CACHE_DIR=str(tmp_path))
    assert result.returncode == 0, result.stderr
    kernels = json.loads(result.stdout)
    assert {entry["capability"] for entry in kernels} == {80, 86, 90} and len(kernels) == 4 + 4 + 4 * 4
    assert all(entry["machine_code"] > 0 and entry["fused"] == 0 for entry in kernels)
    allowed = [entry["fused_if_allowed"] for entry in kernels if "fused_if_allowed" in entry]
    assert len(allowed) == 4 and min(allowed) > 0
    # those that go over all weights: nothing changes places between threads, and a thread moves 8 bytes at a time
    large = [entry for entry in kernels if entry["kernel"] != "perturb_rows"]
    assert all(entry["barriers"] == 0 and entry["vectors"] >= 16 for entry in large)
    # an update of one pair lets half as many programs again run at the same time as one of many
    of = {
        entry["kernel"]: entry["registers"]
        for entry in kernels
        if (entry["capability"], entry["KIND"]) == (90, BFLOAT16)
    }
    assert 1.5 * of["one_pair_update_tiles"] <= of["update_tiles"]

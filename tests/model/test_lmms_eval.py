"""lmms-eval 0.7.3's own class `llava_onevision` loads a checkpoint of ours and answers as `Answerer` does.

It is installed apart, without its dependencies but for those that importing the class needs; offline it is skipped.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llava.eval.generation import Answerer, Decoding, Question, load_model

ROOT = Path(__file__).parents[2]
TINY = ROOT / "playground" / "tiny-llava-onevision"
PACKAGES = ("lmms-eval==0.7.3", "loguru", "decord", "pytz", "evaluate")
QUESTION = "Are there signs of a tumor in the image? Yes or No?\nAnswer:"


@pytest.mark.slow
@pytest.mark.long
def test_its_class_answers_as_ours(tmp_path: Path) -> None:
    target = tmp_path / "packages"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), *PACKAGES]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"lmms-eval cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    picture = min((ROOT / "playground" / "data" / "scan" / "images").glob("*.png"))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{target}", "HF_HUB_OFFLINE": "1"}
    client = [sys.executable, str(Path(__file__).with_name("lmms_eval_client.py")), str(TINY), str(picture), QUESTION]
    found = subprocess.run(client, capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr[-2000:]
    answerer = Answerer(*load_model(str(TINY), None, "float32"), "qwen_1_5")
    [wanted] = answerer.answer([Question("q", [(f"<image>\n{QUESTION}", None)], [picture])], Decoding(max_new_tokens=8))
    assert f"ANSWER {wanted!r}\n" in found.stdout

"""Evaluation of a folder that is no model: one line, and no file of answers is begun."""

from __future__ import annotations

import json
import shutil

import pytest
from spoilt import EVERYTHING

from llava.eval import accuracy, model_vqa

CASES = ("HF onevision", "LoRA folder", "weights cut", "config not JSON", "a weight too many", "tokenizer not JSON")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("door", ["accuracy", "model_vqa"])
def test_nothing_is_begun(door, case, checkpoint, records, tmp_path, refused):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    EVERYTHING[case][0](folder)
    question = {"sample_id": "a", "image": [records[0]["image"]], "conversations": records[0]["conversations"]}
    (tmp_path / "questions.json").write_text(json.dumps([question]))
    images, answers = ["--image-folder", str(tmp_path)], tmp_path / "out" / "answers.jsonl"
    command, flags = {
        "accuracy": (accuracy.main, ["--data", str(tmp_path / "data.json"), "--output", str(answers)]),
        "model_vqa": (
            model_vqa.main,
            ["--question-file", str(tmp_path / "questions.json"), "--answers-file", str(answers)],
        ),
    }[door]
    error = refused(command, ["--model-path", str(folder), *images, *flags])
    assert error.count("error: ") == 1 and error[error.index("error: ") :].count("\n") == 1
    assert str(folder) in error
    assert not answers.parent.exists()

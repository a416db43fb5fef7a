"""The embedded checkpoint and data, and the whole job on them: train, evaluate, report, refuse, resume."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors import safe_open

from llava.conversation import conv_templates
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.runs.run_report import REQUIRED_FIELDS

ROOT = Path(__file__).parents[2]
PLAYGROUND = ROOT / "playground"
CHECKPOINT = PLAYGROUND / "tiny-llava-onevision"
SCRIPT = ROOT / "scripts" / "train" / "mezo_onevision_si.sh"
sys.path.insert(0, str(ROOT / "scripts" / "train"))

import run_and_evaluate  # noqa: E402

QUICK = ["--max_steps", "6", "--save_steps", "3", "--logging_steps", "2", "--disable_tqdm", "True"]


def test_checkpoint_and_data_are_small() -> None:
    assert sum(file.stat().st_size for file in PLAYGROUND.rglob("*") if file.is_file()) < 8e6


def test_checkpoint_has_the_names_that_others_expect() -> None:
    with safe_open(CHECKPOINT / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert {"model.image_newline", "model.mm_projector.0.weight", "model.mm_projector.2.bias"} <= names
    assert "model.vision_tower.vision_tower.vision_model.embeddings.position_embedding.weight" in names
    assert "lm_head.weight" not in names  # tied
    config = json.loads((CHECKPOINT / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("llava_qwen", ["LlavaQwenForCausalLM"])


def test_splits_do_not_overlap() -> None:
    for task in ("scan", "figure", "chart"):
        folder = PLAYGROUND / "data" / task
        pictures = [
            {Image.open(folder / record["image"]).convert("RGB").tobytes() for record in json.loads(file.read_text())}
            for file in (folder / "train.json", folder / "val.json", folder / "test.json")
        ]
        assert not pictures[0] & pictures[1] and not pictures[0] & pictures[2] and not pictures[1] & pictures[2]


def test_checkpoint_sees() -> None:
    """It names the one coloured block of a picture that it has never seen."""
    tokenizer, model, image_processor, _ = load_pretrained_model(
        str(CHECKPOINT), None, "llava_qwen", device_map="cpu", torch_dtype="float32", attn_implementation="sdpa"
    )
    image = Image.new("RGB", (56, 56), (250, 250, 250))
    image.paste((45, 80, 210), (12, 20, 26, 53))
    conversation = conv_templates["qwen_1_5"].copy()
    conversation.append_message(conversation.roles[0], "<image>\nRead the heights from left to right.\nAnswer:")
    conversation.append_message(conversation.roles[1], None)
    ids = tokenizer_image_token(conversation.get_prompt(), tokenizer, return_tensors="pt")[None]
    tiles = process_images([image], image_processor, model.config)
    answer = model.generate(ids, images=tiles, image_sizes=[image.size], do_sample=False, max_new_tokens=8)
    assert re.fullmatch(r"blue [5-7]", tokenizer.decode(answer[0], skip_special_tokens=True).strip())


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first twenty test records."""
    path = tmp_path_factory.mktemp("data") / "test.json"
    path.write_text(json.dumps(json.loads((PLAYGROUND / "data" / "scan" / "test.json").read_text())[:20]))
    return path


def demo(folder: Path, questions: Path | str, *flags: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OUTPUT_DIR": str(folder), "EVAL_DATA": str(questions), **more}
    words = ["bash", str(SCRIPT), "demo", *QUICK, *flags]
    return subprocess.run(words, capture_output=True, text=True, env=environment)


@pytest.fixture()
def demo_here(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The same, but the command that the script would start is a call: exit code, output, and what went to stderr."""

    def run(*words: Any, **more: str) -> tuple[int, str, str]:
        planned = demo(*words, "--dry_run", **more)
        assert planned.returncode == 0, planned.stderr
        words = shlex.split(planned.stdout)
        code = 0
        try:
            run_and_evaluate.main(words[words.index("--preset") :])
        except SystemExit as stop:
            code = stop.code
        return code, *capfd.readouterr()

    return run


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("more", [("--adapter", "lora"), ("--zo_quantized_scales", "True")])
def test_the_whole_job_in_4_bits(more: tuple[str, ...], questions: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    result = demo(tmp_path, questions, "--bits", "4", *more)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "report.json").read_text())["bits"] == 4
    assert re.search(r"bits of the base, also evaluated +4\n", result.stdout)
    settings = [json.loads((tmp_path / f"eval_{name}.json").read_text()) for name in ("before", "after")]
    kinds = [one.get("settings", one)["quantization_config"] for one in settings]
    assert kinds[0] == kinds[1] and kinds[0]["load_in_4bit"]
    assert kinds[0]["bnb_4bit_use_double_quant"] == ("--adapter" in more)


def test_a_run_among_the_answers_is_asked_for_those(
    questions: Path, tmp_path: Path, demo_here: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(run_and_evaluate, "run", lambda words: asked.append(words) or sys.exit(9))
    assert demo_here(tmp_path, questions, "--zo_objective", "classification")[0] == 9
    assert demo_here(tmp_path, questions)[0] == 9
    data = str(PLAYGROUND / "data" / "scan" / "train.json")
    assert asked[0][asked[0].index("--answers-of") + 1] == data and "--answers-of" not in asked[1]


@pytest.mark.slow
def test_the_whole_job(questions: Path, tmp_path: Path, demo_here: Callable[..., tuple[int, str, str]]) -> None:
    folder = tmp_path / "run"
    first = demo(folder, questions)
    assert first.returncode == 0, first.stderr
    report = json.loads((folder / "report.json").read_text())
    assert set(REQUIRED_FIELDS) <= report.keys()
    assert (report["preset"], report["trainer_mode"], report["steps"]) == ("demo", "zo", 6)
    assert 0 <= report["accuracy_before"] <= 1 and 0 <= report["accuracy_after"] <= 1
    assert report["seconds_per_step"] > 0 and report["peak_memory_bytes"] > 1e7 and report["final_loss"] > 0
    assert {"model.safetensors", "loss.png", "trainer_state.json", "report.json"} <= {p.name for p in folder.iterdir()}
    table = first.stdout[first.stdout.rindex("accuracy before") :]
    for name in ("accuracy before", "accuracy after", "final loss", "time per step", "peak memory", str(folder)):
        assert name in table

    code, _, errors = demo_here(folder, questions)
    assert code == 2
    assert errors.splitlines()[-1].startswith(f"error: OUTPUT_DIR {folder} holds a finished run")

    code, _, errors = demo_here(folder, "", "--overwrite_output_dir", "True", "--max_steps", "2")
    assert code == 0, errors
    report = json.loads((folder / "report.json").read_text())
    assert (report["steps"], report["accuracy_before"], report["accuracy_after"]) == (2, None, None)


def test_what_is_missing_is_said_before_anything_is_loaded(
    questions: Path, tmp_path: Path, demo_here: Callable[..., tuple[int, str, str]]
) -> None:
    code, output, errors = demo_here(tmp_path / "a", questions, MODEL="lmms-lab/no-such-model")
    assert (code, output) == (2, "")
    assert re.match(r"error: --model_name_or_path lmms-lab/no-such-model: .*set MODEL or .*\n$", errors)
    code, output, errors = demo_here(tmp_path / "b", questions, DATA_PATH=str(tmp_path / "none.json"))
    assert (code, output) == (2, "")
    assert re.match(r"error: --data_path .*none\.json: no such file; set DATA_PATH.*\n$", errors)
    (tmp_path / "file").write_text("")
    code, output, errors = demo_here(tmp_path / "file" / "run", questions)
    assert (code, output) == (2, "")
    assert re.match(r"error: --output_dir .* cannot be written to .*set OUTPUT_DIR.*\n$", errors)
